"""The report of a sweep over several kinds of compressor: the front of each kind, fidelity against readability."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import pytest
from support.records import snapshot
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report import page_figures, page_tables
from tokconv.sweep.report.kinds import KIND_KEY, kind_fronts, kinds, readability
from tokconv.sweep.report.page import page
from tokconv.sweep.report.page_legend import legend_of
from tokconv.sweep.report.plots import STOPPED, kinds_figure
from tokconv.sweep.report.results import write_results
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.rules import Target
from tokconv.sweep.spec.schema import Spec

KEPT = "val/reader_kept"
SEARCH = {KIND_KEY: Range(KIND_KEY, "choice", ("residual", "conv", "adaptive"))}
SPEC = Spec(name="demo", trials=4, search=SEARCH).with_objectives(())


def of_kind(kind: str, uid: str, **values: Any) -> TrialRecord:
    found = trial(uid, **values)
    found.values[KIND_KEY] = kind
    return found


def sweep_of(trials: list[TrialRecord], *grids: int, figure: str = KEPT, spec: Spec = SPEC) -> SweepSnapshot:
    known = baselines(*grids)
    for number, figures in enumerate(row for rows in known.values() for row in rows.values()):
        figures.setdefault(figure, 0.5 + number / 100)
    return snapshot(trials, judge(trials, spec.rules, TOKEN_GRID, known), spec, protocol=None)


def drawn(kind_names: tuple[str, ...] = ("adaptive", "conv"), count: int = 40) -> list[TrialRecord]:
    draw = random.Random(0)
    return [
        of_kind(
            kind_names[number % len(kind_names)],
            f"{number:05d}",
            grid=draw.choice((4, 6)),
            fvu=draw.uniform(0.01, 0.1),
            **{KEPT: draw.uniform(0.7, 1.0)},
        )
        for number in range(count)
    ]


def figures_of(html: str) -> dict[str, Any]:
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def test_the_page_shows_the_front_of_each_kind_at_each_grid() -> None:
    sweep = sweep_of(drawn(), 4, 6)
    html = page(sweep)
    data = [trace for grid in (4, 6) for trace in figures_of(html)[f"kinds-{grid}"]["data"]]
    lines = [trace for trace in data if "lines" in trace["mode"]]
    assert [line["name"] for line in lines] == ["conv", "adaptive"] * 2, "in the order of the spec"
    assert len({line["line"]["color"] for line in lines}) == 2
    for line, (verdict, kind) in zip(
        lines, [(v, kind) for v in sweep.verdicts for kind in ("conv", "adaptive")], strict=True
    ):
        own = [one for one in verdict.trials if one.values[KIND_KEY] == kind]
        points = [(one.figures["val/fvu"], -one.figures[KEPT]) for one in own]
        front = {point for point in points if not any(dominates(other, point) for other in points)}
        assert {(y, -x) for x, y in zip(line["x"], line["y"], strict=True)} == front
        assert line["y"] == sorted(line["y"], reverse=True)
        best = f"<td>{min(points)[0]:.4f}</td><td>{-min(cost for _, cost in points):.1%}</td>"
        assert f"<td>{kind}</td>{best}<td>{len(own)}</td>" in html
    colors = {trace["marker"]["color"] for trace in data if trace["name"] in ("pooling", "matched PCA")}
    assert colors == {STOPPED}


def test_a_best_epoch_counts_and_a_point_outside_the_constraints_does_not() -> None:
    early, plain = of_kind("conv", "0", fvu=0.05, **{KEPT: 0.9}), of_kind("adaptive", "1", fvu=0.04, **{KEPT: 0.9})
    early.best[KEPT] = {**early.history[3], "val/fvu": 0.06, KEPT: 0.99}
    outside = of_kind("conv", "2", fvu=0.01, cosine=0.5, **{KEPT: 1.0})
    spec = SPEC.model_copy(update={"constraints": (Target("val/cosine", ">=", 0.8),)})
    sweep = sweep_of([early, plain, outside], 6, spec=spec)
    conv, adaptive = kind_fronts(sweep, sweep.verdicts[0])
    assert [(one.figures["val/fvu"], one.figures[KEPT]) for one in conv.front] == [(0.06, 0.99), (0.05, 0.9)]
    assert (conv.trials, conv.best("val/fvu"), conv.best(KEPT)) == (2, 0.05, 0.99)
    assert (adaptive.trials, adaptive.best("val/fvu"), adaptive.best(KEPT)) == (1, 0.04, 0.9)


@pytest.mark.parametrize(
    ("has", "judged", "figure"),
    [
        ({KEPT: 0.9, "val/auc_token": 0.7}, KEPT, KEPT),
        ({"val/auc_token": 0.7}, "val/auc_token", "val/auc_token"),
        ({"val/auc_token": 0.7}, KEPT, "val/auc_token"),
        ({}, KEPT, "val/swd"),
        ({}, "val/swd", "val/swd"),
    ],
)
def test_readability_is_the_figure_of_the_plug_in_champion_that_trials_have(
    has: dict[str, float], judged: str, figure: str
) -> None:
    found = [of_kind("conv", "0", **has), of_kind("adaptive", "1", **has)]
    sweep = sweep_of(found, 6, figure=judged)
    assert readability(sweep.verdicts) == figure
    [axes] = kinds_figure(sweep).axes
    assert ("higher is better" in axes.get_xlabel()) == (figure == KEPT)


def test_the_picture_has_a_panel_per_grid_and_each_kind_once_in_its_legend(tmp_path: Path) -> None:
    sweep = sweep_of(drawn(), 4, 6)
    figure = kinds_figure(sweep)
    assert len(figure.axes) == 2
    [legend] = figure.legends
    labels = [text.get_text() for text in legend.get_texts()]
    assert len(labels) == len(set(labels))
    assert {"conv", "adaptive", "pooling"} <= set(labels)
    write_results(tmp_path, sweep)
    assert (tmp_path / "kinds.png").is_file()


def test_a_kind_without_a_trial_at_a_grid_is_in_the_legend_of_all_grids() -> None:
    sweep = sweep_of(
        [of_kind("conv", "0", grid=4, **{KEPT: 0.9}), of_kind("adaptive", "1", grid=6, **{KEPT: 0.9})], 4, 6
    )
    shown = [entry.name for entry in legend_of(figure for _, figure in page_figures.kinds_panels(sweep))]
    assert {"conv", "adaptive"} <= set(shown)
    assert len(shown) == len(set(shown))
    assert page_tables.kind_rows(sweep)[1] == ["", "adaptive", "", "", "0"]


def test_a_sweep_without_a_second_kind_shows_nothing_of_it(tmp_path: Path) -> None:
    # A trial that was stopped early competes with nothing, and so it is no second kind.
    stopped = of_kind("adaptive", "99999", state="pruned")
    for trials in ([trial("0"), trial("1", 4)], []):
        assert kinds(sweep_of([*trials, stopped], 4, 6)) == ()
    sweep = sweep_of([*drawn(("conv",)), stopped], 4, 6)
    html = page(sweep)
    assert not any(name.startswith("kinds") for name in figures_of(html))
    assert 'id="kinds"' not in html
    write_results(tmp_path, sweep)
    assert not (tmp_path / "kinds.png").exists()

"""The page of a sweep says what won, shows every baseline, needs no network, and can be read."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
import pytest
from support.records import snapshot, write_sweep
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.figures import VLM_KL
from tokconv.sweep.judge.snapshot import SweepSnapshot, read_sweep
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report import outcome, page_figures, page_tables
from tokconv.sweep.report.page import page
from tokconv.sweep.report.page_axes import FEWEST, axis, set_axes
from tokconv.sweep.report.page_curves import curves_panels
from tokconv.sweep.report.page_legend import legend_of
from tokconv.sweep.report.plots import pareto_figure
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.rules import Rule, Rules
from tokconv.sweep.spec.schema import Spec

SEARCH = {"training.n_critic": Range("training.n_critic", "int", (1, 5))}
SPEC = Spec(name="demo", trials=4, search=SEARCH).with_objectives(())


def sweep_of(trials: list[TrialRecord], *grids: int, tome: float | None = None) -> SweepSnapshot:
    known = baselines(*grids)
    for named in known.values():
        if tome is not None:
            named["tome"] = {**named["pooling"], "val/fvu": tome}
    return snapshot(trials, judge(trials, Rules(), TOKEN_GRID, known), SPEC)


def test_the_page_of_a_lost_sweep_says_what_won_and_what_to_do() -> None:
    sweep = sweep_of([trial("0", 4, fvu=0.05), trial("1", 6, fvu=0.05)], 4, 6, tome=0.01)
    html = page(sweep)
    assert outcome.headline(sweep) == "No trained compressor is proven to beat the closed forms."
    assert outcome.findings(sweep) == ["ToMe wins fidelity at 36x, 16x."]
    for text in (outcome.headline(sweep), *outcome.findings(sweep), "--resume trials=8", "--resume --allow-unproven"):
        assert text in html
    assert "load_compressor(" not in html
    assert "variance kept" not in html
    assert "star-open" in html, "the best trial is no champion"
    assert 'symbol":"star"' not in html


def test_a_mixed_result_counts_the_wins_of_both() -> None:
    sweep = sweep_of([trial("0", 4, fvu=0.02), trial("1", 6, fvu=0.05)], 4, 6, 8)
    assert outcome.headline(sweep) == "Trained compressors beat, on one seed, every closed form in 1 of 3 cases."
    assert outcome.findings(sweep) == [
        "A trained compressor wins fidelity at 36x.",
        "matched PCA wins fidelity at 16x.",
    ]
    assert [row.state for row in page_tables.outcome_rows(sweep)] == ["won", "lost", "open"]
    assert outcome.outcomes(sweep)[0].difference == "33.3% lower"


def test_a_baseline_that_wins_is_in_the_picture_and_every_one_is_on_the_page() -> None:
    lost = sweep_of([trial("0", 6, fvu=0.05)], 6, tome=0.01)
    won = sweep_of([trial("0", 6, fvu=0.001)], 6, tome=0.05)
    for sweep, shown in ((lost, True), (won, False)):
        html = page(sweep)
        assert all(f'<td class="text">{name}</td>' in html for name in ("ToMe", "window PCA", "matched PCA", "pooling"))
        [hidden] = [entry.hidden for entry in legend_of([page_figures.front_figure(sweep)]) if entry.name == "ToMe"]
        assert hidden != shown
        labels = [text.get_text() for text in pareto_figure(sweep.verdicts, []).legends[0].get_texts()]
        assert ("ToMe" in labels) == shown
        assert "matched PCA" in labels
        assert "window PCA" not in labels


def test_every_baseline_can_be_drawn_and_stands_in_a_legend() -> None:
    known = baselines(6)
    known[6] |= dict.fromkeys(BASELINES, known[6]["pooling"])
    [(_, panel)] = page_figures.likeness_panels(snapshot([], judge([trial("0")], Rules(), TOKEN_GRID, known), SPEC))
    titles = [entry.name for entry in legend_of([panel])]
    assert {entry.title for entry in BASELINES.values()} <= set(titles)
    assert len(titles) == len(set(titles))


def test_a_champion_that_was_exported_has_a_line_to_load_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    directory = write_sweep(tmp_path)
    sweep = read_sweep(directory)
    for one in outcome.outcomes(sweep):
        directory.champion(one.verdict.grid, "fidelity").mkdir(parents=True)
    [first, *_] = outcome.next_steps(sweep)
    assert first[1] == 'tokconv.load_compressor("runs/sweeps/tiny-001/champions/grid-04/fidelity")'
    about = dict(outcome.about(sweep))
    assert about["data"] == "digits: 64 images, each 24 x 24 tokens"
    assert about["encoder"] == "bundled:digits-tower"
    assert about["searched"] == "weights.wgan, n_critic"


def test_searched_keys_are_columns_that_sort_by_value(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    headings, rows = page_tables.trial_headings(sweep), page_tables.trial_rows(sweep)
    assert {"wgan", "n_critic", "seed"} <= set(headings)
    assert {len(row.cells) for row in rows} == {len(headings)}
    column = headings.index("wgan")
    every = {**sweep.trials, **sweep.confirmations}
    assert [row.cells[column][1] for row in rows] == [one.values["loss.weights.wgan"] for one in every.values()]
    champions = {uid for verdict in sweep.verdicts for uid in verdict.champions}
    assert {row.cells[0][0] for row in rows if row.won} == champions
    assert page(sweep).count("&#9733;") == len(champions)


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_every_axis_has_a_few_ticks_within_its_range(scale: str) -> None:
    draw = random.Random(0)
    for _ in range(300):
        low = 10 ** draw.uniform(-5, 1)
        values = [low, low * 10 ** draw.choice([0.0, draw.uniform(0, 0.1), draw.uniform(0, 4)])]
        found = axis(values, scale)  # type: ignore[arg-type]
        lowest, highest = [10**end for end in found["range"]] if scale == "log" else found["range"]
        assert lowest < values[0] <= values[1] < highest
        assert FEWEST - 1 <= len(found["tickvals"]) <= 9, (values, found)
        assert all(lowest <= tick <= highest for tick in found["tickvals"])
        assert len(set(found["ticktext"])) == len(found["ticktext"])


def test_epochs_are_integers_and_curves_have_baselines() -> None:
    sweep = sweep_of([trial("0", 6, fvu=0.05, epochs=3)], 6)
    for metric in ("val/fvu", "val/swd"):
        [(_, figure)] = curves_panels(sweep, metric)
        assert all(tick == int(tick) for tick in figure.layout.xaxis.tickvals)
        assert len(figure.layout.xaxis.tickvals) >= FEWEST
        assert {"pooling", "matched PCA", "best trial"} <= {trace.name for trace in figure.data}


def test_a_sweep_that_a_language_model_judges_shows_its_divergence_at_every_ratio() -> None:
    def of(grid: int, kl: float) -> TrialRecord:
        return trial(str(grid), grid, fvu=0.05, **{VLM_KL: kl})

    known = {g: {name: {**row, VLM_KL: 0.5} for name, row in rows.items()} for g, rows in baselines(4, 6).items()}
    trials = [of(4, 0.2), of(6, 0.1)]
    verdicts = judge(trials, Rules({"plug-in": Rule()}), TOKEN_GRID, known)
    figure = page_figures.front_figure(snapshot(trials, verdicts, SPEC), VLM_KL)
    drawn = {trace.name: list(trace.y) for trace in figure.data}
    assert (drawn["complete"], drawn["champion"], drawn["pooling"]) == ([0.2, 0.1], [0.2, 0.1], [0.5, 0.5])
    assert "KL" in figure.layout.yaxis.title.text
    assert "front-kl" in page(snapshot(trials, verdicts, SPEC))
    assert "front-kl" not in page(sweep_of([trial("0", 6)], 6))


def test_what_is_hidden_does_not_widen_an_axis_until_it_is_shown() -> None:
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[1, 2])
    figure.add_scatter(x=[1], y=[1000], visible="legendonly")
    set_axes(figure, x="linear", y="linear")
    assert figure.layout.yaxis.range[1] < 3
    assert figure.layout.meta["wide"]["yaxis"]["range"][1] > 1000


@pytest.mark.parametrize("scale", ["log", "linear"])
def test_an_axis_has_room_for_whole_intervals(scale: str) -> None:
    figure = go.Figure()
    figure.add_scatter(x=[1, 2], y=[0.02, 0.03])
    figure.add_scatter(x=[1], y=[0.03], error_y={"type": "data", "array": [0.02]})
    set_axes(figure, x=None, y=scale)  # type: ignore[arg-type]
    low, high = (10**end if scale == "log" else end for end in figure.layout.yaxis.range)
    assert low < 0.01
    assert high > 0.05


def figures_of(html: str) -> dict[str, Any]:
    """Return the figures that the page's script draws."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def test_a_page_holds_the_figures_of_the_record_and_needs_no_network(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    html = page(sweep)
    outside = html.split("<script>", 1)[0] + html.rsplit("</script>", 1)[1]
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", outside)
    assert "<script src" not in html
    assert "<link" not in html
    figures = figures_of(html)
    assert {"front", "likeness-4", "likeness-8", "curves-fvu-4", "curves-swd-8", "savings"} <= figures.keys()
    assert {"parallel-4", "parallel-8"} <= figures.keys()
    front = {trace["name"]: trace for trace in figures["front"]["data"]}
    complete = sorted(t.figures["val/fvu"] for t in sweep.trials.values() if t.state == "complete")
    assert sorted(front["complete"]["y"]) == pytest.approx(complete)
    stars = front["champion"]
    for index, verdict in enumerate(sweep.verdicts):
        assert verdict.evidence is not None
        assert stars["y"][index] == pytest.approx(verdict.evidence.figures["val/fvu"])
        assert stars["error_y"]["array"][index] == pytest.approx(verdict.evidence.half_widths["val/fvu"])
    run, saved = figures["savings"]["data"]
    assert sum(run["y"]) == sum(len(trial.history) for trial in sweep.trials.values())
    assert sum(saved["y"]) == 2 * 4
    assert all(trial.uid in html for trial in sweep.confirmations.values())


def test_text_from_a_sweep_never_becomes_html(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    directory = write_sweep(tmp_path, reason=bad)
    card = directory.champion(4, "fidelity")
    card.mkdir(parents=True)
    (card / "README.md").write_text(f"---\nlicense: other\n---\n\n# {bad}\n\n[a](javascript:alert(1))\n")
    html = page(read_sweep(directory))
    assert "license: other" not in html
    assert "<h4>" in html
    assert bad not in html
    assert "<img src=x" not in html
    assert 'href="javascript' not in html
    assert "&lt;img src=x" in html


def test_a_page_of_a_thousand_trials_stays_small(tmp_path: Path) -> None:
    small, large = (len(page(read_sweep(write_sweep(tmp_path, trials=count)))) for count in (24, 1000))
    assert large - small < 1_000_000


@pytest.mark.parametrize("trials", [1, 2])
def test_an_unfinished_sweep_has_a_page(tmp_path: Path, trials: int) -> None:
    sweep = read_sweep(write_sweep(tmp_path, trials=trials, ended=False))
    html = page(sweep)
    figures_of(html)
    assert ("No trial is complete yet" in html) == (trials == 1)

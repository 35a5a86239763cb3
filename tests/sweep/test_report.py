"""The result of a sweep: one judgement as a table, as Markdown, as files and as pictures."""

from __future__ import annotations

import io
import json
import random
import subprocess
import sys
from pathlib import Path

import pandas
import pytest
from rich.console import Console
from support.records import snapshot
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.evaluation.protocol import PROTOCOL
from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.judge.verdicts import Verdict, judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report import page_tables
from tokconv.sweep.report.plots import curves_figure, pareto_figure
from tokconv.sweep.report.results import results_frame, write_results
from tokconv.sweep.report.table import print_result, summary_markdown
from tokconv.sweep.spec.rules import Rules
from tokconv.sweep.spec.schema import Spec

GRIDS = (4, 6, 8, 12)
SPEC = Spec(name="demo", trials=4).with_objectives(())


def judged(trials: list[TrialRecord], *grids: int) -> list[Verdict]:
    return judge(trials, Rules(), TOKEN_GRID, baselines(*grids))


def printed(verdicts: list[Verdict], width: int = 100, *, terminal: bool = False) -> str:
    stream = io.StringIO()
    console = Console(file=stream, width=width, force_terminal=terminal, force_interactive=False, color_system=None)
    print_result(snapshot([], verdicts, SPEC), console)
    return stream.getvalue()


def markdown(verdicts: list[Verdict]) -> str:
    return summary_markdown(snapshot([], verdicts, SPEC))


def sweep(count: int, seed: int = 0, *grids: int) -> list[TrialRecord]:
    draw = random.Random(seed)
    states = ("complete", "complete", "pruned", "failed", "running")
    return [
        trial(
            f"{i:05d}",
            draw.choice(grids or GRIDS),
            draw.choice(states),
            draw.uniform(0.01, 0.1),
            draw.uniform(0.05, 0.3),
            epochs=draw.randint(1, 9),
        )
        for i in range(count)
    ]


def test_the_table_has_one_row_per_champion_and_baseline() -> None:
    won = trial("00003", 6, fvu=0.0123, swd=0.0876, **{"val/probe_accuracy": 0.951, "val/probe_kept": 0.962})
    rows = [" ".join(line.split()) for line in printed(judged([won, trial("00004", 6, fvu=0.5)], 6)).splitlines()]
    assert "6x6 36 16x fidelity: 00003 0.0123 +87.7% 0.088 (0.050) 0.900 95.1% 96.2% yes" in rows
    assert "pooling 0.1000 +0.0% 0.110 (0.050) 0.900" in rows
    assert "matched PCA 0.0300 +70.0% 0.130 (0.050) 0.900" in rows
    assert not any("00004" in row or row.startswith("window PCA") for row in rows)


def test_a_baseline_that_wins_has_its_row_wherever_it_comes_from() -> None:
    """Every baseline that the champion does not beat is in the table, not only the best one."""
    known = baselines(6)
    known[6] |= {name: {**known[6]["pooling"], "val/fvu": fvu} for name, fvu in (("tome", 0.01), ("prumerge", 0.011))}
    known[6]["uniform"] = {**known[6]["pooling"], "val/fvu": 0.5}
    for text in (printed(judge([trial("0")], Rules(), TOKEN_GRID, known)),):
        rows = [" ".join(line.split()) for line in text.splitlines()]
        assert any(row.startswith("ToMe 0.0100") for row in rows)
        assert any(row.startswith("PruMerge 0.0110") for row in rows)
        assert not any(row.startswith("uniform") for row in rows)


def test_the_probe_has_no_column_if_there_are_no_labels() -> None:
    assert "probe" not in printed(judged([trial("0")], 6))
    assert "probe" not in markdown(judged([trial("0")], 6))


def test_notes_name_missed_targets_and_empty_grids() -> None:
    verdicts = judged([trial("0", 6, swd=0.134), trial("1", 4, "pruned"), trial("2", 4, "failed")], 4, 6)
    for text in (printed(verdicts), markdown(verdicts)):
        assert "6x6: trial 0 misses val/swd <= 0.1 (it has 0.134)" in text
        assert "targets, as published: val/swd <= 0.1 and val/cosine >= 0.85; window PCA" in text
        assert "4x4: no trial finished at this grid" in text


def test_a_log_is_plain_ascii_and_cuts_nothing_off() -> None:
    text = printed(judged(sweep(40), *GRIDS), width=20)
    assert text.isascii()
    assert "\x1b" not in text
    assert "(0.050)" in text


@pytest.mark.parametrize("width", [80, 100, 160])
def test_a_terminal_line_is_never_longer_than_the_terminal(width: int) -> None:
    full = trial("00003", 12, **{"val/probe_accuracy": 0.951, "val/probe_kept": 0.962})
    text = printed(judged([full], *GRIDS), width, terminal=True)
    assert max(map(len, text.splitlines())) <= width
    assert "\N{HORIZONTAL ELLIPSIS}" not in text
    assert ("cosine (cosine of" in " ".join(text.split())) == (width >= 100)


def test_markdown_is_one_rectangular_table() -> None:
    table = [line for line in markdown(judged(sweep(40), *GRIDS)).splitlines() if line.startswith("|")]
    assert len({line.count("|") for line in table}) == 1
    # The champion, its evidence, pooling and matched PCA.
    assert len(table) == 2 + 4 * len(GRIDS)


@pytest.mark.parametrize(("recorded", "protocol"), [(PROTOCOL, PROTOCOL), (1, 1), (None, 1)])
def test_every_form_of_the_result_names_the_protocol_of_its_record(
    tmp_path: Path, recorded: int | None, protocol: int
) -> None:
    """The first version of the record did not name its protocol."""
    found = snapshot([trial("0")], judged([trial("0")], 6), SPEC, protocol=recorded)
    stream = io.StringIO()
    print_result(found, Console(file=stream))
    for text in (stream.getvalue(), summary_markdown(found)):
        assert f"evaluation protocol {protocol}" in text
    write_results(tmp_path, found, exported={})
    assert json.loads((tmp_path / "champions.json").read_text())["6"]["protocol"] == protocol
    assert list(results_frame(found)["protocol"]) == [protocol]


def test_results_have_one_row_per_trial_and_mark_the_front() -> None:
    trials = sweep(60)
    frame = results_frame(snapshot(trials, [], SPEC))
    assert list(frame["uid"]) == [t.uid for t in trials]
    assert list(frame["training.n_critic"]) == [3] * 60
    for row, found in zip(frame.to_dict("records"), trials, strict=True):
        assert row["state"] == found.state
        assert row["epochs"] == len(found.history)
        assert row["val/fvu"] == found.figures["val/fvu"]
        assert pandas.isna(row["on_front"]) == (found.state != "complete")
        assert pandas.isna(row["seconds"]) == (found.state == "running")
    complete = [t for t in trials if t.state == "complete"]
    points = {t.uid: (-t.ratio, t.figures["val/fvu"], t.figures["val/swd"]) for t in complete}
    expected = {uid for uid, point in points.items() if not any(dominates(p, point) for p in points.values())}
    assert {row["uid"] for row in frame.to_dict("records") if row["on_front"] is True} == expected


@pytest.mark.parametrize(
    ("trials", "grids"),
    [
        ([], GRIDS),
        ([trial("0")], (6,)),
        ([trial("0", epochs=1)], (6,)),
        ([trial("0", epochs=0, state="failed"), trial("1", state="pruned", epochs=2)], (6,)),
        ([trial("0", 24, fvu=0.0, swd=0.0)], (24,)),
        (sweep(30, 1, 6), (6,)),
        (sweep(30, 2), (*GRIDS, 1, 2, 3, 24)),
        (sweep(1000, 3), GRIDS),
    ],
    ids=["no trial", "one", "one epoch", "none complete", "lossless", "one grid", "eight grids", "a thousand"],
)
def test_every_sweep_can_be_written(tmp_path: Path, trials: list[TrialRecord], grids: tuple[int, ...]) -> None:
    verdicts = judged(trials, *grids)
    write_results(tmp_path / "report", snapshot(trials, verdicts, SPEC), exported={})
    assert {p.name for p in (tmp_path / "report").iterdir()} == {
        "results.csv",
        "champions.json",
        "pareto.png",
        "learning_curves.png",
    }
    assert len(pandas.read_csv(tmp_path / "report" / "results.csv", dtype={"uid": str})) == len(trials)
    champions = json.loads((tmp_path / "report" / "champions.json").read_text())
    assert {int(grid) for grid in champions} == set(grids)
    for verdict in verdicts:
        champion = champions[str(verdict.grid)]["champions"]["fidelity"]
        assert champion["trial"] == (verdict.champion and verdict.champion.uid)
        assert champion["meets_targets"] == verdict.first.meets_targets


def test_pictures_have_one_panel_per_grid_and_one_legend_without_empty_entries() -> None:
    trials = [trial("0", 6), trial("1", 4)]
    verdicts = judged(trials, 4, 6)
    pareto, curves = pareto_figure(verdicts, trials, 0.1), curves_figure(verdicts, trials)
    assert len(pareto.axes) == 1 + 2
    assert len(curves.axes) == 2 * 2
    for figure in (pareto, curves):
        [legend] = figure.legends
        labels = [text.get_text() for text in legend.get_texts()]
        assert len(labels) == len(set(labels))
        assert "champion" in labels
        assert "stopped early" not in labels


def test_importing_the_report_is_cheap() -> None:
    heavy = "{'matplotlib', 'pandas', 'rich', 'ray', 'torch'}"
    code = f"import sys, tokconv.sweep.report.results; print({heavy} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "set()"


def test_a_narrow_terminal_keeps_the_figures_that_decide_and_the_best_baseline_at_each() -> None:
    known = baselines(6)
    for number, figures in enumerate(known[6].values()):
        figures.update({"val/reader_kept": 0.5, "val/adapted_kept": 0.9 - number / 10})
    known[6]["max_norm"] = {**known[6]["pooling"], "val/fvu": 0.4, "val/adapted_kept": 0.99}
    won = trial("00003", 6, fvu=0.0123, **{"val/reader_kept": 0.8, "val/adapted_kept": 0.95})
    text = printed(judge([won], Rules(), TOKEN_GRID, known), 104, terminal=True)
    rows = [" ".join(line.split()) for line in text.splitlines()]
    assert "6x6 36 16x fidelity, plug-in, adapted: 00003 0.0123 80.0% 95.0% yes" in rows
    assert "max norm 0.4000 50.0% 99.0%" in rows
    assert not any(row.startswith("window PCA") for row in rows)
    assert {"unconfirmed: fidelity, plug-in", "unproven: adapted"} <= set(rows)
    rows_of_page = page_tables.outcome_rows(snapshot([], judge([won], Rules(), TOKEN_GRID, known), SPEC))
    assert [[text for _, text, _ in row.cells[1:5]] for row in rows_of_page] == [
        ["fidelity", "fvu, lower is better", "0.0123 (trial 00003)", "matched PCA 0.0300"],
        ["plug-in", "reader kept, higher is better", "80.0% (trial 00003)", "pooling 50.0%"],
        ["adapted", "adapted kept, higher is better", "95.0% (trial 00003)", "max norm 99.0%"],
    ]
    # Who wins is bold: the trial twice, then the closed form.
    assert [[won for _, _, won in row.cells[3:5]] for row in rows_of_page] == [
        [True, False],
        [True, False],
        [False, True],
    ]
    assert [row.cells[-1][1] for row in rows_of_page] == [
        *["trained wins, unconfirmed"] * 2,
        "max norm wins, trained unproven",
    ]

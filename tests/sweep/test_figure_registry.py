"""A figure that is added to the registry is shown in every place that its entry names."""

from __future__ import annotations

import io
import re
from pathlib import Path

import pytest
from rich.console import Console
from support.records import write_sweep

from tokconv.evaluation import figures
from tokconv.evaluation.figure import MLFLOW, NOTE, SWEEP, TRIALS, Figure
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.report.page import page
from tokconv.sweep.report.table import print_result, summary_markdown
from tokconv.sweep.tracking.mlflow_view import description, run_note, view_tags

ROUNDNESS = Figure(
    name="val/roundness",
    title="roundness",
    meaning="how round the tokens are",
    lower_is_better=False,
    form=".2f",
    floor="val/roundness_floor",
    places=frozenset({SWEEP, TRIALS, MLFLOW, NOTE}),
)
FLOOR = Figure(
    name="val/roundness_floor", title="roundness floor", meaning="of squares", lower_is_better=False, form=""
)


def test_a_new_figure_is_shown_wherever_its_entry_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sweep = read_sweep(write_sweep(tmp_path, trials=6))
    trial = next(trial for trial in sweep.trials.values() if trial.state == "complete")
    for run in (*sweep.trials.values(), *sweep.confirmations.values()):
        run.history[-1] |= {"val/roundness": 0.7512, "val/roundness_floor": 0.25}
    for verdict in sweep.verdicts:
        assert verdict.evidence is not None
        verdict.evidence.figures.update({"val/roundness": 0.7512, "val/roundness_floor": 0.25})
    assert "roundness" not in summary_markdown(sweep) + page(sweep) + description()
    for entry in (ROUNDNESS, FLOOR):
        monkeypatch.setitem(figures.FIGURES, entry.name, entry)

    stream = io.StringIO()
    print_result(sweep, Console(file=stream))
    for table in (stream.getvalue(), summary_markdown(sweep)):
        assert "roundness (floor)" in table
        assert "0.75 (0.25)" in table
        assert "roundness (how round the tokens are; floor: of squares)" in table
    html = page(sweep)
    assert "<button>roundness</button>" in html
    assert re.search(rf"<tr[^>]*><td>{trial.uid}</td>.*<td[^>]*>0\.75</td>", html)
    assert "metrics.`val/roundness`" in next(iter(view_tags("3.17.0", []).values()))
    assert "`val/roundness`: how round the tokens are" in description()
    assert "roundness 0.75" in run_note(trial, 24)

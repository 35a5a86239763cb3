"""Answers with a sweep's champions: in its folder, its record, its page and MLflow."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.artefacts import write_export
from support.records import write_sweep

from tokconv.cli.answers import _sweep_of, _tell_sweep
from tokconv.exports.answers.methods import find_exports
from tokconv.exports.answers.table import TEXT
from tokconv.exports.artefact import read_config
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import read_events
from tokconv.sweep.tracking.mlflow_connection import connect, local_uri
from tokconv.system.files import write_json, write_text

FIGURES = {"accuracy": 0.75, "kept": 0.9, "agreement": 0.8, "kl": 0.25, "perplexity": 1.5, "accuracy_low": 0.6}
NO_LABELS = {"accuracy": None, "kept": None, "agreement": 0.5, "kl": 0.5, "perplexity": 2.0}


@pytest.fixture
def sweep(tmp_path: Path) -> SweepDirectory:
    """A finished sweep whose champion at 4 x 4 was exported from a confirmation."""
    directory = write_sweep(tmp_path, trials=6)
    folder = write_export(directory.champion(4, "plug-in"), token_grid=24, dim=64, grid=4)
    evidence = {"summary": "proven", "purpose": "plug-in", "exported": "c04-2"}
    write_json(folder / "config.json", {**read_config(folder), "evidence": evidence})
    return directory


def test_champions_of_one_sweep_are_answered_in_its_folder(sweep: SweepDirectory, tmp_path: Path) -> None:
    exports = find_exports([sweep.path])
    assert exports == [("tiny-001 plug-in", sweep.champion(4, "plug-in"))]
    assert _sweep_of([folder for _, folder in exports]) == sweep.path
    other = write_export(tmp_path / "other", token_grid=24, dim=64, grid=4)
    assert _sweep_of([other]) is None
    assert _sweep_of([*(folder for _, folder in exports), other]) is None
    assert _sweep_of([]) is None


def test_they_are_in_the_record_the_page_and_mlflow(
    sweep: SweepDirectory, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = read_sweep(sweep)
    tasks = {"textile": FIGURES, "captions": NO_LABELS}
    figures = [
        {"series": "all tokens", "grid": 24, "tasks": {}},
        {"series": "tiny-001 plug-in", "grid": 4, "tasks": tasks},
    ]
    write_text(sweep.answers / TEXT, "KL of <everything>\n")
    _tell_sweep(sweep.path, find_exports([sweep.path]), figures)
    out = capsys.readouterr().out
    assert "MLflow: all" in out
    event = [event for event, _ in read_events(sweep.events)][-1]
    assert (event["event"], event["trial"]) == ("trial_answered", "c04-2")
    wanted = {
        "answers/textile/accuracy": 0.75,
        "answers/textile/kept": 0.9,
        "answers/textile/agreement": 0.8,
        "answers/textile/kl": 0.25,
        "answers/textile/perplexity": 1.5,
        "answers/captions/agreement": 0.5,
        "answers/captions/kl": 0.5,
        "answers/captions/perplexity": 2.0,
    }
    assert event["figures"] == wanted
    page = sweep.page.read_text()
    assert "Answers of a vision-language model" in page
    assert "KL of &lt;everything&gt;" in page
    after = read_sweep(sweep)
    assert (after.state, after.trials, after.verdicts) == (before.state, before.trials, before.verdicts)
    client = connect(local_uri(tmp_path / "runs"))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.`tokconv.trial_uid` = 'tiny-001/c04-2'")
    assert {name: value for name, value in run.data.metrics.items() if name.startswith("answers/")} == wanted


def test_a_sweep_that_nobody_asked_about_has_no_such_section(sweep: SweepDirectory) -> None:
    from tokconv.sweep.report.page import page

    assert "Answers of a vision-language model" not in page(read_sweep(sweep))

"""A sweep whose trials all fail alike ends early and reports why. Faults of single trials: test_runners.py."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.one_ray import one_ray
from support.sweeping import faulty_path, write_spec

from tokconv.cli.main import main
from tokconv.sweep.record.log import read_trials


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")  # of Ray, MLflow and SQLAlchemy, in their own threads
def test_a_sweep_whose_trials_all_fail_alike_ends_early_and_reports_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    record = tmp_path / "runs" / "sweeps" / "tiny-001" / "events.jsonl"

    def sweep(trials: int, *options: str) -> int:
        search = {"training.learning_rate": {"float": [1e-4, 1e-3]}}
        path = write_spec(tmp_path, search=search, trials=trials, concurrency=2)
        return main(["sweep", str(path), "--allow-unproven", *options])

    with one_ray(PYTHONPATH=faulty_path(), TOKCONV_FAULT="oom:1e-4+"):
        assert sweep(40) == 2
    assert "tokconv: the first 5 trials all failed in the same way: out of memory" in capsys.readouterr().err
    failed = len(read_trials(record))
    assert 5 <= failed <= 7
    assert {trial.state for trial in read_trials(record)} == {"failed"}
    # Without the fault the rest of the budget runs.
    with one_ray():
        assert sweep(8, "--resume") == 0
    assert [trial.state for trial in read_trials(record)] == ["failed"] * failed + ["complete"] * (8 - failed)

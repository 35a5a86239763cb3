"""Trials that hang, run out of memory or all fail: each costs only itself, and the sweep reports why."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.sweeping import events, write_spec

import tokconv
from tokconv.cli.main import main
from tokconv.sweep.record.events import TrialRecord, read_trials
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.file import load_spec

FAULTS = Path(__file__).parents[1] / "support" / "faults"
RATES = {"search": {"training.learning_rate": {"choice": [0.9, 1e-3]}}, "sampler": {"kind": "grid", "seed": 0}}

Sweep = Callable[..., tuple[Path, int]]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore"),  # of Ray, MLflow and SQLAlchemy, in their own threads
]


@pytest.fixture
def sweep(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Sweep:
    """Return a function that runs a sweep with a fault in the processes of its trials, which inherit the environment.

    It returns the sweep's directory and the exit code.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAULTS), str(Path(tokconv.__file__).parents[1])]))

    def run(fault: str, *options: str, **changes: Any) -> tuple[Path, int]:
        monkeypatch.setenv("TOKCONV_FAULT", fault)
        code = main(["sweep", str(write_spec(tmp_path, **changes)), "--allow-unproven", *options])
        return max((tmp_path / "runs" / "sweeps").iterdir()), code

    return run


def by_rate(directory: Path) -> dict[float, TrialRecord]:
    return {trial.values["training.learning_rate"]: trial for trial in read_trials(directory / "events.jsonl")}


def study_states(directory: Path) -> list[str]:
    study: optuna.Study = open_study(load_spec(directory / "spec.yaml"), directory / "study.journal")
    return sorted(trial.state.name for trial in study.trials)


def test_trials_that_hang_or_run_out_of_memory_fail_and_the_sweep_goes_on(sweep: Sweep) -> None:
    grid = {**RATES, "search": {"training.learning_rate": {"choice": [0.9, 0.7, 1e-3]}}}
    directory, code = sweep("hang:0.8,oom:0.5", **grid, trials=3, resources={"runner": "inline", "trial_timeout": 8})
    assert code == 0
    trials = by_rate(directory)
    assert [trials[rate].state for rate in (0.9, 0.7, 1e-3)] == ["failed", "failed", "complete"]
    assert trials[0.9].reason == "no epoch ended within resources.trial_timeout, 8 s"
    assert trials[0.7].reason.startswith("out of memory (CUDA out of memory. Tried to allocate 20.00 GiB); lower")
    starts = [event["trial"] for event in events(directory) if event["event"] == "trial_started"]
    assert [starts.count(trials[rate].uid) for rate in (0.7, 1e-3)] == [1, 1], "it would run out again"
    assert study_states(directory) == ["COMPLETE", "FAIL", "FAIL"]


def test_a_torch_trainer_that_hangs_fails_and_the_sweep_goes_on(sweep: Sweep) -> None:
    resources = {"runner": "torch_trainer", "trial_timeout": 40}
    directory, code = sweep("hang:0.5", **RATES, trials=2, resources=resources)
    assert code == 0
    trials = by_rate(directory)
    assert (trials[0.9].state, trials[1e-3].state) == ("failed", "complete")
    assert trials[0.9].reason == "no epoch ended within resources.trial_timeout, 40 s"
    assert study_states(directory) == ["COMPLETE", "FAIL"]


def test_a_sweep_whose_trials_all_fail_alike_ends_early_and_reports_why(
    sweep: Sweep, capsys: pytest.CaptureFixture[str]
) -> None:
    search = {"training.learning_rate": {"float": [0.6, 0.9]}}
    directory, code = sweep("oom:0.5", search=search, trials=40, concurrency=2)
    assert code == 2
    assert "tokconv: the first 5 trials all failed in the same way: out of memory" in capsys.readouterr().err
    trials = read_trials(directory / "events.jsonl")
    assert 5 <= len(trials) <= 7
    assert {trial.state for trial in trials} == {"failed"}
    # Without the fault the rest of the budget runs.
    directory, code = sweep("", "--resume", search=search, trials=8, concurrency=2)
    assert code == 0
    states = [trial.state for trial in read_trials(directory / "events.jsonl")]
    assert len(states) == 8
    assert states.count("complete") + states.count("failed") == 8

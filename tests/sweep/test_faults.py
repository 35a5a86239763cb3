"""Trials that hang, run out of memory or all fail: each costs only itself, and the sweep reports why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import optuna
import pytest
from support.sweeping import events, write_spec

import tokconv
from tokconv.sweep.record.events import TrialRecord, read_trials
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.file import load_spec

FAULTS = Path(__file__).parents[1] / "support" / "faults"
RATES = {"search": {"training.learning_rate": {"choice": [0.9, 1e-3]}}, "sampler": {"kind": "grid", "seed": 0}}

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
]


def sweep(root: Path, fault: str = "", *options: str, **changes: Any) -> tuple[Path, subprocess.CompletedProcess[str]]:
    """Run a sweep in its own process, with a fault in those that train; return its directory and its output."""
    spec = write_spec(root, **changes)
    paths = [str(FAULTS), str(Path(tokconv.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "TOKCONV_FAULT": fault}
    command = [sys.executable, "-m", "tokconv.cli.main", "sweep", str(spec), "--allow-unproven", *options]
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    return max((root / "runs" / "sweeps").iterdir()), done


def by_rate(directory: Path) -> dict[float, TrialRecord]:
    return {trial.values["training.learning_rate"]: trial for trial in read_trials(directory / "events.jsonl")}


def study_states(directory: Path) -> list[str]:
    study: optuna.Study = open_study(load_spec(directory / "spec.yaml"), directory / "study.journal")
    return sorted(trial.state.name for trial in study.trials)


@pytest.mark.parametrize("runner", ["inline", "torch_trainer"])
def test_a_trial_that_hangs_fails_and_the_sweep_goes_on(tmp_path: Path, runner: str) -> None:
    limit = 8 if runner == "inline" else 25
    resources = {"runner": runner, "trial_timeout": limit}
    directory, done = sweep(tmp_path, "hang:0.5", **RATES, trials=2, concurrency=1, resources=resources)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = by_rate(directory)
    assert (trials[0.9].state, trials[1e-3].state) == ("failed", "complete")
    assert trials[0.9].reason == f"no epoch ended within resources.trial_timeout, {limit} s"
    assert study_states(directory) == ["COMPLETE", "FAIL"]


def test_a_trial_without_memory_fails_once_and_the_sweep_goes_on(tmp_path: Path) -> None:
    directory, done = sweep(tmp_path, "oom:0.5", **RATES, trials=2, concurrency=1)
    assert done.returncode == 0, done.stdout + done.stderr
    trials = by_rate(directory)
    assert (trials[0.9].state, trials[1e-3].state) == ("failed", "complete")
    assert trials[0.9].reason.startswith("out of memory (CUDA out of memory. Tried to allocate 20.00 GiB); lower")
    starts = [event["trial"] for event in events(directory) if event["event"] == "trial_started"]
    assert sorted(starts) == sorted(set(starts)), "it would run out again"
    assert study_states(directory) == ["COMPLETE", "FAIL"]


def test_a_sweep_whose_trials_all_fail_alike_ends_early_and_reports_why(tmp_path: Path) -> None:
    search = {"training.learning_rate": {"float": [0.6, 0.9]}}
    directory, done = sweep(tmp_path, "oom:0.5", search=search, trials=40, concurrency=2)
    assert done.returncode == 2
    said = done.stdout + done.stderr
    assert re.search(r"tokconv: the first 5 trials all failed in the same way: out of memory", said), said
    trials = read_trials(directory / "events.jsonl")
    assert 5 <= len(trials) <= 7
    assert {trial.state for trial in trials} == {"failed"}
    # Without the fault the rest of the budget runs.
    directory, again = sweep(tmp_path, "", "--resume", search=search, trials=8, concurrency=2)
    assert again.returncode == 0, again.stdout + again.stderr
    states = [trial.state for trial in read_trials(directory / "events.jsonl")]
    assert len(states) == 8
    assert states.count("complete") + states.count("failed") == 8

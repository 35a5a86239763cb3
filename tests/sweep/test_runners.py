"""Both runners on real Ray: one sweep with every fault each, and the figures of its good trial.

Trials that hang, run out of memory or diverge cost only themselves, and the sweep reports why.
"""

from __future__ import annotations

import time
from typing import Any

import pytest
from ray.tune.experiment import Trial
from support.one_ray import one_ray
from support.sweeping import events, faulty_path, spec

from tokconv.config.overrides import with_values
from tokconv.encoding.console import encode_and_print
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.run import SweepResult, run_sweep
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.file import load_spec, parse_spec
from tokconv.sweep.trials.listener import Listener
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Ray, MLflow and SQLAlchemy, in their own threads
    pytest.mark.timeout(600),
]
DIVERGES, HANGS, RUNS_OUT, GOOD = 1e30, 0.9, 0.7, 1e-3
"""Learning rates."""
TIMEOUT = 15
"""Seconds."""
FAULTY = f"hang:{HANGS},oom:{RUNS_OUT}"
UNDETERMINED = ("train/images_per_second", "train/adversarial", "train/adversarial_token", "train/adversarial_grid")
"""As in tests/training/test_workers.py."""


@pytest.fixture(scope="module")
def runners(tmp_path_factory: pytest.TempPathFactory) -> dict[str, SweepResult]:
    """A sweep by each runner: inline in one process per trial, and `TorchTrainer`s with two workers each.

    The driver of the `TorchTrainer`s is busy while a trainer ends, and still receives its last report.
    """
    on_trial_result = Listener.on_trial_result

    def slow(self: Listener, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any]) -> None:
        on_trial_result(self, iteration, trials, trial, result)
        time.sleep(8 if result.get("epoch") == 3 else 0)

    def swept(name: str, rates: list[float], concurrency: int, **resources: Any) -> SweepResult:
        plain = spec(
            tmp_path_factory.mktemp(name),
            name=name,
            search={"training.learning_rate": {"choice": rates}},
            sampler={"kind": "grid", "seed": 0},
            trials=len(rates),
            concurrency=concurrency,
            base=["training.learning_rate=1e30", "loss.weights.wgan=0.01", "training.n_critic=2"],
            resources={"cpus_per_worker": 1, **resources},
        )
        return run_sweep(parse_spec(plain), allow_unproven=True)

    faults = {"TOKCONV_FAULT": FAULTY, "TOKCONV_START": "90"}
    with one_ray(PYTHONPATH=faulty_path(), **faults), pytest.MonkeyPatch.context() as patch:
        # While one trial hangs, the others run.
        found = {
            "inline": swept("inline", [DIVERGES, HANGS, RUNS_OUT, GOOD], 2, runner="inline", trial_timeout=TIMEOUT)
        }
        patch.setattr(Listener, "on_trial_result", slow)
        nested = {"runner": "torch_trainer", "workers": 2, "trial_timeout": TIMEOUT}
        found["torch_trainer"] = swept("nested", [DIVERGES, HANGS, GOOD], 1, **nested)
    return found


@pytest.fixture(scope="module")
def alone(runners: dict[str, SweepResult], tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, float]]:
    """Return the history of the good trial in a process without Ray."""
    config = load_spec(runners["inline"].directory / "spec.yaml").base_config()
    config = with_values(config, {"training.learning_rate": GOOD})
    store = encode_and_print(config)
    return run_trial(config, store, LocalRuntime(tmp_path_factory.mktemp("alone"), device="cpu")).history


def by_rate(result: SweepResult) -> dict[float, TrialRecord]:
    return {trial.values["training.learning_rate"]: trial for trial in result.trials.values()}


def test_a_trial_in_a_process_of_ray_has_the_figures_of_one_without(
    runners: dict[str, SweepResult], alone: list[dict[str, float]]
) -> None:
    trial = by_rate(runners["inline"])[GOOD]
    assert len(alone) == 5
    ours, theirs = (
        [{name: value for name, value in row.items() if name != "train/images_per_second"} for row in history]
        for history in (trial.history, alone)
    )
    assert ours == theirs
    # The best epoch by the champion rule is kept in full.
    assert trial.best["val/fvu"]["val/fvu"] == min(row["val/fvu"] for row in alone)
    assert "val/adapted_accuracy" in trial.best["val/fvu"]


def test_two_workers_of_a_torch_trainer_have_the_figures_of_one_process(
    runners: dict[str, SweepResult], alone: list[dict[str, float]]
) -> None:
    trial = by_rate(runners["torch_trainer"])[GOOD]
    for ours, row in zip(trial.history, alone, strict=True):
        names = row.keys() - set(UNDETERMINED)
        assert {name: ours[name] for name in names} == pytest.approx(
            {name: row[name] for name in names}, rel=1e-5, abs=1e-5
        )
    assert trial.best.keys() == by_rate(runners["inline"])[GOOD].best.keys() >= {"val/fvu"}
    assert "val/adapted_accuracy" in trial.best["val/fvu"]


def test_rank_0_alone_writes(runners: dict[str, SweepResult]) -> None:
    result = runners["torch_trainer"]
    trial = by_rate(result)[GOOD]
    checkpoint = result.directory / str(trial.checkpoint)
    # Beside the weights of a best epoch that is not the last.
    written = sorted(path.name for path in checkpoint.iterdir() if not path.name.startswith("best-"))
    assert written == ["optimizers.pt", "state.json", "weights.safetensors"]
    assert [path for path in result.directory.rglob("weights.safetensors") if trial.uid in path.parts] == [
        checkpoint / "weights.safetensors"
    ]


@pytest.mark.parametrize("runner", ["inline", "torch_trainer"])
def test_trials_that_diverge_or_hang_are_failed_and_the_sweep_goes_on(
    runners: dict[str, SweepResult], runner: str
) -> None:
    result = runners[runner]
    trials = by_rate(result)
    assert [trials[rate].state for rate in (DIVERGES, HANGS, GOOD)] == ["failed", "failed", "complete"]
    assert "not finite" in trials[DIVERGES].reason
    assert trials[HANGS].reason == f"no epoch ended within resources.trial_timeout, {TIMEOUT} s"
    assert result.verdicts[0].champion is not None
    assert result.verdicts[0].champion.uid == trials[GOOD].uid
    study = open_study(load_spec(result.directory / "spec.yaml"), result.directory / "study.journal")
    states = sorted(trial.state.name for trial in study.trials)
    assert states == ["COMPLETE", *["FAIL"] * (len(trials) - 1)]


def test_a_trial_that_runs_out_of_memory_is_failed_once(runners: dict[str, SweepResult]) -> None:
    result = runners["inline"]
    trials = by_rate(result)
    assert trials[RUNS_OUT].state == "failed"
    assert trials[RUNS_OUT].reason.startswith("out of memory (CUDA out of memory. Tried to allocate 20.00 GiB); lower")
    starts = [event["trial"] for event in events(result.directory) if event["event"] == "trial_started"]
    assert [starts.count(trials[rate].uid) for rate in (RUNS_OUT, GOOD)] == [1, 1], "it would run out again"

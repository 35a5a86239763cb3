"""The study behind a sweep, without Ray: first trials, reported results, and every sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from support.studies import Sweep, holds, make_spec, result

from tokconv.config.keys import get
from tokconv.config.overrides import with_values
from tokconv.sweep.record.final_state import FAILURE, final_state
from tokconv.sweep.search.space import first_points
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.outline import GRID_KEY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_the_first_trials_are_the_base_config_at_every_grid(tmp_path: Path, kind: str) -> None:
    spec = make_spec(kind, base=["training.n_critic=2", "training.grad_clip=1.5"])
    first = [config["values"] for config in Sweep(spec, tmp_path).run(3)]
    assert [values[GRID_KEY] for values in first] == [4, 8, 12]
    for values in first:
        at_grid = with_values(spec.base_config(), {GRID_KEY: values[GRID_KEY]})
        assert values == {key: get(at_grid, key) for key in spec.search}


def test_base_values_outside_their_ranges_are_moved_into_them() -> None:
    search = {
        "training.n_critic": {"int": [7, 9]},
        "loss.weights.ae": {"int": [1, 3]},
        "loss.wgan.lambda_gp": {"log": [20, 30]},
        "training.critic_learning_rate": {"log": [1e-4, 1e-2]},
        "model.compressor.init": {"choice": ["pooling"]},
    }
    spec = make_spec(search=search, base=["loss.weights.ae=2.4"])
    assert first_points(spec) == [
        {
            "training.n_critic": 7,
            "loss.weights.ae": 2,
            "loss.wgan.lambda_gp": 20,
            "training.critic_learning_rate": 1e-4,
            "model.compressor.init": "pooling",
        }
    ]


def test_a_budget_smaller_than_the_grids_is_kept(tmp_path: Path) -> None:
    assert len(open_study(make_spec(trials=2), tmp_path / "study.journal").trials) == 2


def test_the_study_gets_the_state_in_which_the_trial_ended(tmp_path: Path) -> None:
    sweep = Sweep(make_spec(), tmp_path)
    ends: list[tuple[dict[str, Any] | None, bool, TrialState]] = [
        (result(1), False, TrialState.COMPLETE),
        (result(2, epoch=3), False, TrialState.PRUNED),
        (result(3, **{FAILURE: "the loss is not finite"}), False, TrialState.FAIL),
        ({FAILURE: "the loss is not finite"}, False, TrialState.FAIL),
        (result(4), True, TrialState.FAIL),
        (result(5, epoch=2), True, TrialState.FAIL),
        (None, False, TrialState.FAIL),
        ({}, False, TrialState.FAIL),
    ]
    for number, (last, error, _) in enumerate(ends):
        assert sweep.ask(str(number))["uid"] == f"{number:05d}"
        sweep.searcher.on_trial_complete(str(number), last, error)
    trials = sweep.study.get_trials()
    assert [found.state for found in trials[: len(ends)]] == [state for _, _, state in ends]
    assert trials[0].values == [36.0, result(1)["val/fvu"], result(1)["val/swd"]]
    assert all(found.values is None for found in trials[1 : len(ends)])


def test_only_complete_trials_enter_the_front(tmp_path: Path) -> None:
    sweep = Sweep(make_spec(), tmp_path)
    best = {"val/fvu": 0.0, "val/swd": 0.0, "compression_ratio": 576.0}
    for number, last in enumerate([result(1), result(2, epoch=2, **best), result(3, **best, **{FAILURE: "diverged"})]):
        sweep.ask(str(number))
        sweep.searcher.on_trial_complete(str(number), last)
    assert [found.number for found in sweep.study.best_trials] == [0]


def test_a_result_of_an_unknown_trial_changes_nothing(tmp_path: Path) -> None:
    sweep = Sweep(make_spec(), tmp_path)
    sweep.ask("mine")
    sweep.searcher.on_trial_complete("another", result())
    sweep.searcher.on_trial_complete("mine", result(1))
    sweep.searcher.on_trial_complete("mine", None, error=True)
    assert [found.state for found in sweep.study.trials[:1]] == [TrialState.COMPLETE]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "grid", pytest.param("gp", marks=pytest.mark.slow)])
def test_every_sampler_stays_in_its_ranges_and_numbers_its_trials(tmp_path: Path, kind: str) -> None:
    spec = make_spec(kind)
    count = 9 if kind == "grid" else 14
    configs = Sweep(spec, tmp_path).run(count)
    assert [config["uid"] for config in configs] == [f"{number:05d}" for number in range(count)]
    for config in configs:
        assert config["values"].keys() == spec.search.keys()
        assert all(holds(spec.search[key], value) for key, value in config["values"].items())
        with_values(spec.base_config(), config["values"])
    drawn = [tuple(config["values"].values()) for config in configs[3:]]
    assert len(set(drawn)) > len(drawn) / 2


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "grid"])
def test_a_seed_fixes_a_sweep_whose_results_come_in_one_order(tmp_path: Path, kind: str) -> None:
    count = 9 if kind == "grid" else 14
    sweeps = []
    for number, seed in enumerate([3, 3, 4]):
        (tmp_path / str(number)).mkdir()
        sweeps.append(Sweep(make_spec(kind, seed), tmp_path / str(number)).run(count))
    assert sweeps[0] == sweeps[1]
    assert sweeps[0] != sweeps[2]


def test_a_grid_is_visited_once_and_then_finished(tmp_path: Path) -> None:
    sweep = Sweep(make_spec("grid"), tmp_path)
    values = [tuple(config["values"].values()) for config in sweep.run(9)]
    assert sorted(values) == [(k, n) for k in (4, 8, 12) for n in (1, 2, 3)]
    assert sweep.searcher.suggest("more") == Searcher.FINISHED


def test_a_journal_keeps_the_objectives_and_their_directions(tmp_path: Path) -> None:
    spec = make_spec(objectives=[{"metric": "val/gain", "mode": "max"}, {"metric": "val/swd", "mode": "min"}])
    sweep = Sweep(spec, tmp_path)
    sweep.ask("one")
    sweep.searcher.on_trial_complete("one", result(1, **{"val/gain": 0.75}))
    again = open_study(spec, tmp_path / "study.journal")
    directions = [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
    assert again.directions == directions
    assert again.trials[0].values == [0.75, result(1)["val/swd"]]


def test_a_complete_trial_without_an_objectives_figure_is_failed(tmp_path: Path) -> None:
    objectives = [{"metric": "val/probe_kept", "mode": "max"}, {"metric": "val/fvu", "mode": "min"}]
    sweep = Sweep(make_spec(objectives=objectives), tmp_path)
    for name, last in (("without", result(1)), ("with", result(2, **{"val/probe_kept": 0.9}))):
        sweep.ask(name)
        sweep.searcher.on_trial_complete(name, last)
    assert [found.state for found in sweep.study.trials[:2]] == [TrialState.FAIL, TrialState.COMPLETE]
    assert [found.number for found in sweep.study.best_trials] == [1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_trial_whose_objective_is_not_finite_is_failed_in_study_and_record(tmp_path: Path, value: float) -> None:
    """The record holds no such figure, and the trial would count as complete without being judged."""
    sweep, last = Sweep(make_spec(), tmp_path), result(1, **{"val/swd": value})
    sweep.ask("one")
    sweep.searcher.on_trial_complete("one", last)
    assert sweep.state("00000") is TrialState.FAIL
    assert final_state(last, error=False, judged_by=["val/fvu", "val/swd"]) == "failed"

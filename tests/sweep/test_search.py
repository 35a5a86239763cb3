"""The study behind a sweep, without Ray: first trials, reported results, resuming, and every sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from support.networks import PUBLISHED
from support.trials import trial

from tokconv.config.keys import get
from tokconv.config.overrides import with_values
from tokconv.sweep.record.events import TrialRecord, Trials
from tokconv.sweep.record.final_state import FAILURE, final_state
from tokconv.sweep.search.space import distribution, first_points
from tokconv.sweep.search.study import StudySearcher, open_study
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.schema import Spec

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

WHOLE = {GRID_KEY: {"choice": [4, 8, 12]}, "training.n_critic": {"int": [1, 3]}}
SEARCH = {
    **WHOLE,
    "loss.weights.ae": {"log": [0.1, 10]},
    "training.grad_clip": {"float": [0.5, 2]},
    "model.compressor.init": {"choice": ["pca", "pooling"]},
    "training.critic_learning_rate": {"choice": [None, 1e-3]},
}


def make_spec(kind: str = "tpe", seed: int = 0, **changes: Any) -> Spec:
    search = WHOLE if kind == "grid" else SEARCH
    base = [*PUBLISHED, *changes.pop("base", [])]
    plain = {"name": "tiny", "trials": 40, "search": search, "sampler": {"kind": kind, "seed": seed}, **changes}
    plain["base"] = base
    return parse_spec(plain).with_objectives(())


def result(number: int = 0, epoch: int = 4, **others: Any) -> dict[str, Any]:
    """Return a last result as Tune holds it, different for every trial."""
    figures = {"val/fvu": 0.5 / (1 + number), "val/swd": 0.1 * (number + 1) % 0.37}
    return {"epoch": epoch, "epochs": 4, "compression_ratio": 36.0, **figures, **others}


class Sweep:
    """A driver: the configs that it was given, and a way to report their results."""

    def __init__(self, spec: Spec, path: Path, records: tuple[TrialRecord, ...] = ()) -> None:
        record = Trials(path / "events.jsonl")
        record.trials |= {trial.uid: trial for trial in records}
        self.study = open_study(spec, path / "study.journal", record)
        self.searcher = StudySearcher(spec, self.study, records)

    def ask(self, name: str) -> dict[str, Any]:
        config: dict[str, Any] = self.searcher.suggest(name)
        return config

    def run(self, count: int) -> list[dict[str, Any]]:
        """Ask for trials and report their results, one after another."""
        found = []
        for number in range(count):
            found.append(self.ask(f"run-{number}"))
            self.searcher.on_trial_complete(f"run-{number}", result(number))
        return found

    def state(self, uid: str) -> TrialState:
        return self.study.get_trials(deepcopy=False)[int(uid)].state


def holds(found: Range, value: Any) -> bool:
    if found.kind == "choice":
        return value in found.values
    return bool(found.values[0] <= value <= found.values[1]) and (found.kind != "int" or isinstance(value, int))


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


def test_a_grid_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    spec = make_spec("grid")
    before = Sweep(spec, tmp_path)
    first = before.run(5)
    first.append(before.ask("running when the driver died"))
    after = Sweep(spec, tmp_path, tuple(record(config, "complete") for config in first[:5]))
    found = after.run(4)
    assert found[0] == first[5]
    assert len({tuple(config["values"].values()) for config in first + found}) == 9
    assert after.searcher.suggest("more") == Searcher.FINISHED


def record(config: dict[str, Any], state: str) -> TrialRecord:
    """Return the trial of a config as the sweep's record holds it."""
    found = trial(config["uid"], config["values"][GRID_KEY], state)
    found.values = config["values"]
    return found


def test_resuming_brings_unfinished_trials_first_with_the_values_they_had(tmp_path: Path) -> None:
    spec = make_spec()
    before = Sweep(spec, tmp_path)
    finished = before.run(5)
    running = [before.ask(f"left-{number}") for number in range(3)]
    # The driver died before the last of them was started.
    known = [record(config, "complete") for config in finished] + [record(config, "running") for config in running[:2]]
    after = Sweep(spec, tmp_path, tuple(known))
    assert [after.state(config["uid"]) for config in running] == [TrialState.RUNNING] * 3
    assert [after.ask(f"again-{number}") for number in range(3)] == running
    assert after.ask("new")["uid"] == "00008"
    for number, last in enumerate([result(1), result(2, epoch=1), None]):
        after.searcher.on_trial_complete(f"again-{number}", last)
    states = [after.state(config["uid"]) for config in running]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL]


def test_a_trial_that_the_study_knows_as_ended_may_run_again(tmp_path: Path) -> None:
    """Tune reports to the study before the record, and a driver may die in between."""
    spec = make_spec()
    [config] = Sweep(spec, tmp_path).run(1)
    after = Sweep(spec, tmp_path, (record(config, "running"),))
    assert after.ask("again") == config
    after.searcher.on_trial_complete("again", result(7))
    assert after.study.trials[0].values == [36.0, result(0)["val/fvu"], result(0)["val/swd"]]


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random"])
def test_a_reopened_study_draws_other_numbers(tmp_path: Path, kind: str) -> None:
    spec = make_spec(kind)
    first = Sweep(spec, tmp_path).run(8)
    known = tuple(record(config, "complete") for config in first)
    again = Sweep(spec, tmp_path, known).run(8)
    weights = [config["values"]["loss.weights.ae"] for config in first[3:] + again]
    assert len(set(weights)) == len(weights)


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


@pytest.mark.parametrize("kind", ["tpe", "random", "grid"])
def test_a_space_may_be_narrowed_in_the_middle(tmp_path: Path, kind: str) -> None:
    """Twelve trials in the whole space, one of them still waiting; the rest in a part of it, none lost."""
    before = Sweep(make_spec(kind), tmp_path)
    before.run(2)
    assert before.study.get_trials(deepcopy=False, states=(TrialState.WAITING,)) or kind == "grid"
    search = {
        **(WHOLE if kind == "grid" else SEARCH),
        GRID_KEY: {"choice": [4, 8]},
        "training.n_critic": {"int": [1, 2]},
    }
    spec = make_spec(kind, search=search)
    after = Sweep(spec, tmp_path)
    names = []
    for number in range(4 if kind == "grid" else 20):
        config = after.ask(f"later-{number}")
        if config == Searcher.FINISHED:
            break
        names.append(config["uid"])
        assert all(holds(found, config["values"][key]) for key, found in spec.search.items()), config
        after.searcher.on_trial_complete(f"later-{number}", result(number))
    assert len(names) == len(set(names)) >= 2
    assert all(after.state(uid) is TrialState.COMPLETE for uid in names)
    again = Sweep(spec, tmp_path)
    assert kind == "grid" or again.ask("last")["values"][GRID_KEY] in (4, 8)


@pytest.mark.parametrize("cut", [1, 20])
def test_a_study_goes_on_with_a_journal_torn_by_a_full_disk_or_a_kill(tmp_path: Path, cut: int) -> None:
    """The trial whose creation or end the lost line recorded is the last one, and is asked for again."""
    Sweep(make_spec(), tmp_path).run(4)
    journal = tmp_path / "study.journal"
    journal.write_bytes(journal.read_bytes()[:-cut])
    again = Sweep(make_spec(), tmp_path)
    known = len(again.study.trials)
    again.run(3)
    assert len(Sweep(make_spec(), tmp_path).study.trials) >= known


@pytest.mark.parametrize("kind", ["tpe", "nsga2", "random", "grid"])
@pytest.mark.parametrize("lost", [0, 1, 2])
def test_a_study_whose_journal_was_lost_is_made_anew_from_the_record(tmp_path: Path, kind: str, lost: int) -> None:
    """No new trial gets the name of one that the record holds, whose checkpoint it would continue."""
    spec = make_spec(kind, trials=5)
    first = Sweep(spec, tmp_path)
    configs = first.run(4)
    journal = tmp_path / "study.journal"
    # All of it, or the lines of the end: an older copy came back.
    kept = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(kept[: len(kept) * lost // 3]))
    states = ("complete", "complete", "pruned", "running")
    known = tuple(record(config, state) for config, state in zip(configs, states, strict=True))
    again = Sweep(spec, tmp_path, known)
    assert again.ask("interrupted") == configs[3]
    assert again.ask("new")["uid"] == "00004"
    begun = (TrialState.COMPLETE, TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    found = again.study.get_trials()
    assert [one.state for one in found[:4]] == list(begun)
    assert [one.params for one in found[:4]] == [config["values"] for config in configs]
    assert found[0].values == [known[0].figures[name] for name in spec.judged_by]


@pytest.mark.parametrize("garbage", [b"garbage\n", b"\xff\xfe\n"])
def test_a_damaged_journal_is_set_aside(tmp_path: Path, garbage: bytes) -> None:
    configs = Sweep(make_spec(), tmp_path).run(3)
    journal = tmp_path / "study.journal"
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:5], garbage, *lines[5:]]))
    known = tuple(record(config, "complete") for config in configs)
    again = Sweep(make_spec(), tmp_path, known)
    assert [one.params for one in again.study.get_trials()] == [config["values"] for config in configs]
    assert again.ask("new")["uid"] == "00003"
    assert garbage in (tmp_path / "study.journal.damaged").read_bytes()


def test_a_point_that_never_started_is_dropped_if_it_lies_outside_of_narrower_ranges(tmp_path: Path) -> None:
    """A driver asks for as many points as may run at a time, and may be killed before the last of them has a place."""
    before = Sweep(make_spec(), tmp_path)
    asked = [before.ask(str(number)) for number in range(3)]
    assert [config["values"][GRID_KEY] for config in asked] == [4, 8, 12]
    spec = make_spec(search={**SEARCH, GRID_KEY: {"choice": [4, 8]}})
    after = Sweep(spec, tmp_path)
    assert [after.ask(str(number))["uid"] for number in range(3)] == ["00000", "00001", "00003"]
    assert after.state("00002") is TrialState.FAIL


def test_a_point_without_all_of_its_values_is_not_started(tmp_path: Path) -> None:
    """The driver died while the sampler chose them: the base config would stand in for the others."""
    spec = make_spec()
    study = open_study(spec, tmp_path / "study.journal")
    study.ask({GRID_KEY: distribution(spec.search[GRID_KEY])})
    asked = Sweep(spec, tmp_path).ask("first")
    assert asked["uid"] == "00001"
    assert asked["values"].keys() == spec.search.keys()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_trial_whose_objective_is_not_finite_is_failed_in_study_and_record(tmp_path: Path, value: float) -> None:
    """The record holds no such figure, and the trial would count as complete without being judged."""
    sweep, last = Sweep(make_spec(), tmp_path), result(1, **{"val/swd": value})
    sweep.ask("one")
    sweep.searcher.on_trial_complete("one", last)
    assert sweep.state("00000") is TrialState.FAIL
    assert final_state(last, error=False, judged_by=["val/fvu", "val/swd"]) == "failed"

"""A study goes on: with unfinished trials, in a narrower space, from a torn, damaged or lost journal."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from ray.tune.search import Searcher
from support.studies import SEARCH, WHOLE, Sweep, holds, make_spec, record, result

from tokconv.sweep.search.space import distribution
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.outline import GRID_KEY

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")


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

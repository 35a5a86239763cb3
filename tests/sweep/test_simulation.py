"""A simulated sweep follows the rules of a real one, and a sampler sees only a part of a long study."""

from __future__ import annotations

import importlib
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.trial import TrialState

from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.record.events import FINISHED
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import read_events, read_trials
from tokconv.sweep.search.history import BoundedHistory
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.spec.schema import Spec

TOOLS = Path(__file__).parents[2] / "tools"
SPEC = Path(__file__).parents[2] / "sweeps" / "rate_distortion.yaml"
TRIALS, SLOTS = 60, 8

pytestmark = [
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    # From MLflow, in the thread that delivers.
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def tools() -> Any:
    """Import tools/simulate_sweep.py, which finds its neighbouring modules as a script does."""
    sys.path.insert(0, str(TOOLS))
    try:
        yield importlib.import_module("simulate_sweep")
    finally:
        sys.path.remove(str(TOOLS))


def make_spec(trials: int = TRIALS, seed: int = 0) -> Spec:
    spec = load_spec(SPEC, [f"trials={trials}", f"concurrency={SLOTS}", f"sampler.seed={seed}"])
    return spec.with_objectives(())


def simulated(tools: Any, path: Path, spec: Spec) -> Any:
    path.mkdir(exist_ok=True)
    found = tools.simulate(spec, SweepDirectory(path), minutes=20, seed=0)
    found.record.close()
    return found


def without_times(path: Path) -> list[dict[str, Any]]:
    return [{key: value for key, value in event.items() if key != "time"} for event, _ in read_events(path)]


@pytest.fixture(scope="module")
def finished(tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    return simulated(tools, tmp_path_factory.mktemp("first") / "sweep-001", make_spec())


def test_every_trial_ends_once_and_no_more_run_than_there_are_slots(finished: Any) -> None:
    kinds: dict[str, Counter[str]] = {}
    running, most = set(), 0
    for event, _ in read_events(finished.directory.events):
        if "trial" not in event:
            continue
        kinds.setdefault(event["trial"], Counter())[event["event"]] += 1
        if event["event"] == "trial_started":
            running.add(event["trial"])
        elif event["event"] == "trial_ended":
            running.remove(event["trial"])
        most = max(most, len(running))
    assert len(kinds) == TRIALS
    assert all(found["trial_started"] == found["trial_ended"] == 1 for found in kinds.values())
    assert not running
    assert most == finished.most_at_once == SLOTS
    assert {trial.state for trial in finished.record.trials.values()} >= {"complete", "pruned"}


def test_the_study_and_the_record_agree(tools: Any, finished: Any) -> None:
    searcher, _ = tools.open_search(finished.spec, finished.directory, finished.record, 20)
    states = {TrialState.COMPLETE: "complete", TrialState.PRUNED: "pruned", TrialState.FAIL: "failed"}
    in_study = {f"{trial.number:05d}": states[trial.state] for trial in searcher._study.get_trials(deepcopy=False)}
    assert in_study == {uid: trial.state for uid, trial in finished.record.trials.items()}


def test_a_seed_fixes_a_simulated_sweep(tools: Any, finished: Any, tmp_path: Path) -> None:
    again = simulated(tools, tmp_path / "sweep-001", make_spec())
    other = simulated(tools, tmp_path / "sweep-002", make_spec(seed=1))
    searched = [
        [event for event in without_times(found.directory.events) if event["event"] != "trial_artifacts"][1:]
        for found in (finished, again, other)
    ]
    assert searched[0] == searched[1]
    assert searched[0] != searched[2]


def test_a_simulated_sweep_goes_on_where_it_was(tools: Any, tmp_path: Path) -> None:
    path = tmp_path / "sweep-001"
    simulated(tools, path, make_spec(trials=10))
    before = without_times(path / "events.jsonl")
    simulated(tools, path, make_spec(trials=15))
    assert without_times(path / "events.jsonl")[: len(before)] == before
    trials = read_trials(path / "events.jsonl")
    assert len(trials) == 15
    assert all(trial.state in FINISHED for trial in trials)


def test_mlflow_holds_what_the_record_holds(tools: Any, finished: Any) -> None:
    count = 10
    # What an earlier delivery of the same sweep left.
    (finished.directory.path / "delivery").mkdir()
    (finished.directory.path / "delivery" / "mlflow.db").write_text("earlier")
    rows = tools.deliver(finished, count)
    events = [event for event, _ in read_events(finished.directory.events)]
    reported = [e for e in events if e["event"] == "trial_reported" and int(e["trial"]) < count]
    baselines = [
        figures for event in events for named in event.get("baselines", {}).values() for figures in named.values()
    ]
    assert rows["runs"] == count + 1 + len(baselines)
    # The ratio is logged before the first epoch, and beside a baseline's figures.
    of_baselines = sum(len({*figures, "compression_ratio"}) for figures in baselines)
    assert rows["metrics"] == count + sum(len(event["figures"]) for event in reported) + of_baselines
    assert rows["params"] == count * (len(finished.spec.search) + 3) + 3 * len(baselines)


def study(sampler: optuna.samplers.BaseSampler) -> optuna.Study:
    return optuna.create_study(sampler=sampler, directions=["maximize", "minimize", "minimize"])


def tpe() -> TPESampler:
    return TPESampler(n_startup_trials=10, multivariate=True, constant_liar=True, seed=0)


def drive(found: optuna.Study, count: int, running: int = 3) -> list[dict[str, Any]]:
    """Ask for trials and report results while others run; a third is pruned."""
    draw, open_trials, asked = random.Random(0), [], []
    for number in range(count):
        trial = found.ask()
        x, k = trial.suggest_float("x", 0, 1), trial.suggest_categorical("k", [4, 8])
        asked.append(dict(trial.params))
        open_trials.append((trial, [1 / k, x + draw.random() / 10, 1 - x + draw.random() / 10]))
        if len(open_trials) > running:
            ended, values = open_trials.pop(draw.randrange(len(open_trials)))
            if number % 3:
                found.tell(ended, values)
            else:
                found.tell(ended, state=TrialState.PRUNED)
    return asked


def test_a_study_within_the_limit_is_sampled_as_without_it() -> None:
    assert drive(study(BoundedHistory(tpe(), limit=40)), 40) == drive(study(tpe()), 40)


def test_of_a_longer_study_the_sampler_sees_the_front_the_newest_and_the_running() -> None:
    sampler = BoundedHistory(tpe(), limit=20)
    found = study(sampler)
    drive(found, 80)
    part = sampler._part_of(found)
    part.refresh()
    shown = {trial.number for trial in part.get_trials()}
    trials = found.get_trials()
    running = {trial.number for trial in trials if not trial.state.is_finished()}
    finished = [trial.number for trial in trials if trial.state.is_finished()]
    points = {t.number: [-t.values[0], *t.values[1:]] for t in trials if t.state is TrialState.COMPLETE}
    front = [n for n, point in points.items() if not any(dominates(other, point) for other in points.values())]
    assert running <= shown
    assert set(sorted(front)[-10:]) <= shown
    assert set(finished[-10:]) <= shown
    assert len(shown - running) == 20
    again = BoundedHistory(tpe(), limit=20)
    assert {trial.number for trial in again._part_of(found).get_trials()} == shown, "a reopened study is shown alike"


def test_a_long_study_is_sampled_the_same_from_the_same_seed() -> None:
    first, second = (drive(study(BoundedHistory(tpe(), limit=15)), 40) for _ in range(2))
    assert json.dumps(first) == json.dumps(second)
    assert len({asked["x"] for asked in first}) == 40

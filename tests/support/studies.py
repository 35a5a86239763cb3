"""A study behind a sweep, and a driver that asks it for trials and reports their results."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from optuna.trial import TrialState

from support.networks import PUBLISHED
from support.trials import trial
from tokconv.sweep.record.events import TrialRecord, Trials
from tokconv.sweep.search.study import StudySearcher, open_study
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.schema import Spec

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


def record(config: dict[str, Any], state: str) -> TrialRecord:
    """Return the trial of a config as the sweep's record holds it."""
    found = trial(config["uid"], config["values"][GRID_KEY], state)
    found.values = config["values"]
    return found


def holds(found: Range, value: Any) -> bool:
    if found.kind == "choice":
        return value in found.values
    return bool(found.values[0] <= value <= found.values[1]) and (found.kind != "int" or isinstance(value, int))

"""Where trials come from: an Optuna study behind Ray Tune's searcher interface.

Ray's own OptunaSearch tells every stopped trial to Optuna as complete, with the value it had when it was stopped; that
value then guides the sampler and enters the Pareto front. Here a trial stopped early is told as pruned, a diverged or
crashed one as failed, and a resumed sweep asks the same study on.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.samplers import BaseSampler, GPSampler, GridSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from ray.tune.search import Searcher

from tokconv.config import get
from tokconv.sweep.outcome import Outcome, outcome
from tokconv.sweep.record import TrialRecord
from tokconv.sweep.space import Range
from tokconv.sweep.spec import GRID_KEY, Spec

STARTUP_TRIALS = 10
"""Random trials before a model-based sampler trusts its model (Optuna's own default for TPE)."""


def open_study(spec: Spec, journal: Path) -> optuna.Study:
    """The sweep's study, created with its first trials queued, or read back from its journal.

    The first trials are the base config at every grid: what the published defaults do is part of every result.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    storage = JournalStorage(JournalFileBackend(str(journal)))
    study = optuna.create_study(
        study_name=spec.name,
        storage=storage,
        load_if_exists=True,
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives],
    )
    # A resumed study must not draw the same random numbers again, hence the number of trials in the seed.
    study.sampler = _sampler(spec, spec.sampler.seed + len(study.trials))
    if not study.trials:
        for point in first_points(spec)[: spec.trials]:
            study.enqueue_trial(point)
    return study


def first_points(spec: Spec) -> list[dict[str, Any]]:
    """The base config at every grid, in the searched keys; a value that a range does not hold is moved to it."""
    config = spec.base_config()
    point = {key: found.nearest(get(config, key)) for key, found in spec.search.items()}
    if GRID_KEY not in spec.search:
        return [point]
    return [{**point, GRID_KEY: grid} for grid in spec.grids()]


class StudySearcher(Searcher):
    """Ray Tune asks it for configs and tells it results.

    A config is `{"uid": "00007", "values": {dotted key: value}}`; the uid is the Optuna trial number. Trials that were
    running when an earlier driver died come first, with the config they had.

    Args:
        study: `open_study`.
        unfinished: from the sweep's record.
    """

    def __init__(self, spec: Spec, study: optuna.Study, unfinished: list[TrialRecord]) -> None:
        super().__init__()
        self._spec, self._study = spec, study
        self._distributions = {key: distribution(found) for key, found in spec.search.items()}
        self._waiting: list[dict[str, Any]] = [{"uid": trial.uid, "values": trial.values} for trial in unfinished]
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        if self._waiting:
            config = self._waiting.pop(0)
        else:
            asked = self._study.ask(self._distributions)
            config = {"uid": f"{asked.number:05d}", "values": dict(asked.params)}
        self._numbers[trial_id] = int(config["uid"])
        return config

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """Nothing: a study with several objectives has no intermediate values."""

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        found = outcome(result, error=error)
        if found is Outcome.COMPLETE and result is not None:
            self._study.tell(number, [result[objective.metric] for objective in self._spec.objectives])
        else:
            self._study.tell(number, state=TrialState.PRUNED if found is Outcome.PRUNED else TrialState.FAIL)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing, see `save`."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the study's journal and the sweep's record hold everything."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, see `save`."""


def distribution(found: Range) -> BaseDistribution:
    """A range as Optuna's distribution."""
    if found.kind == "choice":
        return CategoricalDistribution(found.values)
    low, high = found.values
    if found.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=found.kind == "log")


def _sampler(spec: Spec, seed: int) -> BaseSampler:
    kind = spec.sampler.kind
    if kind == "tpe":
        return TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed)
    if kind == "nsga2":
        return NSGAIISampler(seed=seed)
    if kind == "gp":
        return GPSampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
    if kind == "random":
        return RandomSampler(seed=seed)
    return GridSampler({key: found.members() for key, found in spec.search.items()}, seed=spec.sampler.seed)

"""The source of trials: an Optuna study behind Ray Tune's searcher interface.

Ray's own OptunaSearch reports every stopped trial to Optuna as complete, with its value at that moment; the value then
guides the sampler and enters the Pareto front. Here a trial that was stopped early is reported as pruned, a diverged or
crashed one as failed, and a resumed sweep goes on asking the same study.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from random import Random
from typing import Any

import optuna
from optuna.distributions import CategoricalDistribution
from optuna.samplers import BaseSampler, GPSampler, NSGAIISampler, RandomSampler, TPESampler
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState, create_trial
from ray.tune.search import Searcher

from tokconv.errors import SweepError, printable
from tokconv.sweep.record.events import FINISHED, TrialRecord, Trials
from tokconv.sweep.record.final_state import final_state, missing_objectives
from tokconv.sweep.search.constraints import store_excess
from tokconv.sweep.search.history import BoundedHistory
from tokconv.sweep.search.space import Validity, distribution, first_points, grid_points, random_points
from tokconv.sweep.spec.schema import Spec

STARTUP_TRIALS = 10
"""Random trials before a model-based sampler trusts its model (Optuna's own default for TPE)."""
MOST_REFUSED = 10
"""Invalid points in a row after which a random valid one is next: some samplers would suggest the same one for ever."""
Refuse = Callable[[str, dict[str, Any], str], None]
"""Takes the uid and the values of an invalid point, and the reason."""
TPE_HISTORY = 500
"""Finished trials that TPE sees: its time per suggestion grows faster than their number. Twice as many find nothing
better (simulated sweeps of 1,500 trials, three seeds)."""


def open_study(spec: Spec, journal: Path, record: Trials | None = None) -> optuna.Study:
    """Return the sweep's study, created with its first trials queued, or read back from its journal.

    The first trials are the base config at every grid, so that every result includes what the defaults achieve. If the
    journal was lost, is damaged or is older than the record, the study is made anew from the record: a trial's number
    is its name, and what the study took for a new trial would continue another one.
    """
    logging.getLogger("optuna").setLevel(logging.WARNING)
    if journal.exists():
        # A full disk or a kill may have left a last line unfinished, which the next one would run into.
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    try:
        study = _stored(spec, journal)
    except (json.JSONDecodeError, UnicodeDecodeError):
        print(f"{printable(journal)}: damaged; the study is made anew from the record", flush=True)
        journal.rename(journal.with_name(f"{journal.name}.damaged"))
        study = _stored(spec, journal)
    begun = [trial.state is not TrialState.WAITING for trial in study.get_trials(deepcopy=False)]
    if record is not None and not all(int(uid) < len(begun) and begun[int(uid)] for uid in record.trials):
        journal.unlink()
        study = _stored(spec, journal)
        _enter(study, spec, record)
    # A resumed study must not draw the same random numbers again, hence the number of trials in the seed.
    known = len(study.get_trials(deepcopy=False))
    study.sampler = _sampler(spec, spec.sampler.seed + known)
    if not known:
        for point in first_points(spec)[: spec.trials]:
            study.enqueue_trial(point)
    return study


def _stored(spec: Spec, journal: Path) -> optuna.Study:
    return optuna.create_study(
        study_name=spec.name,
        storage=JournalStorage(JournalFileBackend(str(journal))),
        load_if_exists=True,
        directions=["maximize" if objective.mode == "max" else "minimize" for objective in spec.objectives],
    )


def _enter(study: optuna.Study, spec: Spec, record: Trials) -> None:
    """Enter the points of a record into an empty study, each under its own number."""
    space = {key: distribution(found) for key, found in spec.search.items()}
    for number in range(max(map(int, (*record.trials, *record.refused))) + 1):
        trial = record.trials.get(_uid(number))
        point = trial or record.refused.get(_uid(number))
        if point is None or not _holds(spec, point.values):
            # It was left out, or lies outside of ranges that are narrower now.
            study.add_trial(create_trial(state=TrialState.FAIL))
            continue
        state = TrialState.FAIL if trial is None else TrialState.RUNNING
        study.add_trial(create_trial(state=state, params=point.values, distributions=space))
        if trial is not None and trial.state in FINISHED:
            _tell(study, spec, number, trial.state, trial.figures)


def _holds(spec: Spec, values: Mapping[str, Any]) -> bool:
    """Return whether there is a value for every searched key, within its range."""
    return all(key in values and found.holds(values[key]) for key, found in spec.search.items())


def _tell(study: optuna.Study, spec: Spec, number: int, state: str, figures: Mapping[str, float]) -> None:
    """Report the end of a trial, in the words of the record, to the study."""
    if state == "complete" and not missing_objectives(figures, spec.judged_by):
        store_excess(study, number, spec.constraints, figures)
        end: dict[str, Any] = {"values": [figures[name] for name in spec.judged_by]}
    else:
        end = {"state": TrialState.PRUNED if state == "pruned" else TrialState.FAIL}
    # If a driver died between reporting to the study and to the record, the trial ends a second time.
    study.tell(number, **end, skip_if_finished=True)


class GivenSearcher(Searcher):
    """A Ray Tune searcher that returns given configs in order and learns nothing from their results."""

    def __init__(self, configs: Iterable[dict[str, Any]]) -> None:
        super().__init__()
        self._waiting = list(configs)

    def suggest(self, trial_id: str) -> Any:
        return self._waiting.pop(0) if self._waiting else Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Do nothing."""

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: the study's journal and the sweep's record hold everything."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Do nothing, see `__getstate__`."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing, see `__getstate__`."""


class StudySearcher(GivenSearcher):
    """A Ray Tune searcher that takes configs from a study and reports results to it.

    A config is `{"uid": "00007", "values": {dotted key: value}}`; the uid is the Optuna trial number. Trials that were
    running when an earlier driver died come first, with the config they had, then those that it asked for and never
    started.

    No trial is started for a point that the config refuses: the study learns that it failed, and the next one is asked
    for. Such a point takes nothing of the sweep's budget.

    A resumed sweep may have narrower ranges. Optuna's choices cannot change within a study, so one of the remaining
    choices is drawn at random, and the sampler chooses the other values.

    Args:
        study: from `open_study`.
        trials: those of the sweep's record.
        given_up: returns whether the search should start no more trials.
        on_refused: called for every invalid point, before the study learns of it.
    """

    def __init__(
        self,
        spec: Spec,
        study: optuna.Study,
        trials: Iterable[TrialRecord],
        given_up: Callable[[], bool] = lambda: False,
        on_refused: Refuse = lambda uid, values, reason: None,
    ) -> None:
        self._given_up, self._on_refused = given_up, on_refused
        self._validity = Validity(spec)
        self._spec, self._study = spec, study
        self._distributions = {key: distribution(found) for key, found in spec.search.items()}
        self._narrowed = self._narrowed_choices()
        self._random = Random(f"{spec.sampler.seed} {len(study.get_trials(deepcopy=False))}")
        known = {trial.uid: trial for trial in trials}
        asked = {_uid(t.number): t.params for t in study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))}
        interrupted = {uid: trial.values for uid, trial in known.items() if trial.state == "running"}
        never_started = {
            uid: values
            for uid, values in asked.items()
            if uid not in known and not self._outside(uid, values) and not self._refused(uid, values)
        }
        first = {**interrupted, **never_started}
        super().__init__({"uid": uid, "values": values} for uid, values in first.items())
        self._untried = self._points_left(grid_points(spec)) if spec.sampler.kind == "grid" else None
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next config; `Searcher.FINISHED` if a grid has no point left or the search is given up."""
        if self._given_up():
            return Searcher.FINISHED
        config = self._waiting.pop(0) if self._waiting else self._ask()
        if config is None:
            return Searcher.FINISHED
        self._numbers[trial_id] = int(config["uid"])
        return config

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Report the end of a trial to the study."""
        number = self._numbers.pop(trial_id, None)
        if number is None:
            return
        found = final_state(result, error=error, judged_by=self._spec.judged_by)
        _tell(self._study, self._spec, number, found, result or {})

    def _ask(self) -> dict[str, Any] | None:
        """Return the next valid point; None if a grid has none left."""
        refused = 0
        while self._queue_grid_point():
            if refused and self._untried is None and refused % MOST_REFUSED == 0:
                self._queue_valid_point()
            if self._narrowed and not self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
                self._study.enqueue_trial({key: self._random.choice(left) for key, left in self._narrowed.items()})
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Fixed parameter .* is out of range", UserWarning)
                asked = self._study.ask(self._distributions)
            uid, values = _uid(asked.number), dict(asked.params)
            if self._outside(uid, values):
                continue
            if not self._refused(uid, values):
                return {"uid": uid, "values": values}
            refused += 1
        return None

    def _outside(self, uid: str, values: dict[str, Any]) -> bool:
        """Return whether a point was asked for before the ranges were narrowed, or by a driver that died before it had
        all of its values; if so, nobody will ask for it again."""
        outside = not _holds(self._spec, values)
        if outside:
            self._study.tell(int(uid), state=TrialState.FAIL)
        return outside

    def _refused(self, uid: str, values: dict[str, Any]) -> bool:
        """Return whether a point is invalid; if so, nobody will ask for it again."""
        reason = self._validity.refusal(values)
        if reason:
            self._on_refused(uid, values, reason)
            self._study.tell(int(uid), state=TrialState.FAIL)
        return bool(reason)

    def _queue_valid_point(self) -> None:
        """Queue a random point that the config takes. Raises SweepError if none is found."""
        for point in random_points(self._spec, seed=self._random.randrange(2**31)):
            if not self._validity.refusal(point):
                self._study.enqueue_trial(point)
                return
        raise SweepError("search: hardly any combination of these ranges is valid; narrow them and go on with --resume")

    def _narrowed_choices(self) -> dict[str, tuple[Any, ...]]:
        """Return the remaining choices of keys whose distributions must keep those that the study began with."""
        narrowed = {}
        for trial in self._study.get_trials(deepcopy=False):
            for key, before in trial.distributions.items():
                now = self._distributions.get(key)
                if isinstance(before, CategoricalDistribution) and now is not None and before != now:
                    self._distributions[key], narrowed[key] = before, self._spec.search[key].values
        return narrowed

    def _queue_grid_point(self) -> bool:
        """Queue the next point of the grid unless trials are queued; return false if every point was tried."""
        if self._untried is None or self._study.get_trials(deepcopy=False, states=(TrialState.WAITING,)):
            return True
        point = next(self._untried, None)
        if point is not None:
            self._study.enqueue_trial(point)
        return point is not None

    def _points_left(self, points: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
        """Return the points that no trial has, queued ones included."""
        trials = self._study.get_trials(deepcopy=False)
        tried = {frozenset((t.params or t.system_attrs.get("fixed_params", {})).items()) for t in trials}
        return (point for point in points if frozenset(point.items()) not in tried)


def _uid(number: int) -> str:
    return f"{number:05d}"


def _sampler(spec: Spec, seed: int) -> BaseSampler:
    kind = spec.sampler.kind
    if kind == "tpe":
        tpe = TPESampler(n_startup_trials=STARTUP_TRIALS, multivariate=True, constant_liar=True, seed=seed)
        return BoundedHistory(tpe, TPE_HISTORY)
    if kind == "nsga2":
        return NSGAIISampler(seed=seed)
    if kind == "gp":
        return GPSampler(n_startup_trials=STARTUP_TRIALS, seed=seed)
    # Trials of a grid are queued with all their values (`StudySearcher`), so that the sampler draws nothing.
    return RandomSampler(seed=seed)

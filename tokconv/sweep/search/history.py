"""A sampler that sees a bounded part of a long study, so that a suggestion costs the same at any length.

For every suggestion TPE sorts all finished trials and builds densities of them, which takes seconds with ten thousand.
"""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any

from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler
from optuna.study import Study, StudyDirection
from optuna.trial import FrozenTrial, TrialState

from tokconv.sweep.judge.pareto import Point, dominates
from tokconv.sweep.search.constraints import is_feasible

# A tuple finds members by identity, without hashing them.
FINISHED = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)


class BoundedHistory(BaseSampler):
    """A sampler that delegates to another one, which of the finished trials sees only the front and the newest.

    A shorter study is shown whole, and its suggestions are those of the other sampler. The front takes at most half of
    the places. All running trials are shown.

    Args:
        sampler: one that reads the study through `get_trials`.
        limit: the largest number of finished trials that it sees.

    Example:
        >>> study.sampler = BoundedHistory(TPESampler(seed=0), limit=500)    # doctest: +SKIP
    """

    def __init__(self, sampler: BaseSampler, limit: int) -> None:
        self._sampler, self._limit = sampler, limit
        self._part: _Part | None = None

    def infer_relative_search_space(self, study: Study, trial: FrozenTrial) -> dict[str, BaseDistribution]:
        return self._sampler.infer_relative_search_space(self._part_of(study), trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        return self._sampler.sample_relative(self._part_of(study), trial, search_space)

    def sample_independent(
        self, study: Study, trial: FrozenTrial, param_name: str, param_distribution: BaseDistribution
    ) -> Any:
        return self._sampler.sample_independent(self._part_of(study), trial, param_name, param_distribution)

    def before_trial(self, study: Study, trial: FrozenTrial) -> None:
        self._part_of(study).refresh()
        self._sampler.before_trial(study, trial)

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        self._sampler.after_trial(study, trial, state, values)
        if state is TrialState.COMPLETE and values is not None and is_feasible(trial):
            self._part_of(study).admit(trial.number, values)

    def reseed_rng(self) -> None:
        self._sampler.reseed_rng()

    def _part_of(self, study: Study) -> _Part:
        if self._part is None:
            self._part = _Part(study, self._limit)
        return self._part


class _Part(Study):
    """A study as its sampler sees it; Optuna's Hyperband narrows a study in the same way."""

    def __init__(self, study: Study, limit: int) -> None:
        super().__init__(study.study_name, study._storage, study.sampler, study.pruner)
        self._whole, self._limit = study, limit
        self._signs = [-1 if direction is StudyDirection.MAXIMIZE else 1 for direction in study.directions]
        self._front: dict[int, Point] = {}
        for trial in study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if is_feasible(trial):
                self.admit(trial.number, trial.values)
        self.refresh()

    def admit(self, number: int, values: Sequence[float]) -> None:
        """Add a complete trial to the front unless another one dominates it."""
        point = [sign * value for sign, value in zip(self._signs, values, strict=True)]
        if any(dominates(member, point) for member in self._front.values()):
            return
        self._front = {n: member for n, member in self._front.items() if not dominates(point, member)} | {number: point}

    def refresh(self) -> None:
        """Update the shown part; called once per suggestion, because it looks at every trial."""
        trials = self._whole.get_trials(deepcopy=False)
        front = set(sorted(self._front)[-(self._limit // 2) :])
        # A trial's number is its place in the study.
        room, start = self._limit - len(front), len(trials)
        while start > 0 and room > 0:
            start -= 1
            room -= trials[start].state in FINISHED and start not in front
        older = [t for number, t in enumerate(trials[:start]) if t.state not in FINISHED or number in front]
        self._shown = older + trials[start:]

    def _get_trials(
        self, deepcopy: bool = True, states: Container[TrialState] | None = None, use_cache: bool = False
    ) -> list[FrozenTrial]:
        """Return the shown trials; `get_trials` and `trials` call this too."""
        shown = [trial for trial in self._shown if states is None or trial.state in states]
        return copy.deepcopy(shown) if deepcopy else shown

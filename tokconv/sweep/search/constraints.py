"""The constraints of a spec in an Optuna study: how far a trial is past each of them is stored on the trial.

TPE, GP and NSGA-II read it there: they prefer trials that break nothing, and learn where those lie. A trial that was
stopped early has none, since its figures are not those of its end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import optuna
from optuna.trial import FrozenTrial, Trial

from tokconv.sweep.spec.rules import Target

MOST = 1e9
"""Stands for a missing figure, which is infinitely far away: storages hold no infinity."""


def store_excess(study: optuna.Study, number: int, targets: Sequence[Target], figures: Mapping[str, float]) -> None:
    """Store how far a trial's figures are past each constraint, in units of its limit.

    Call it before the study is told the trial's end. A trial that has ended keeps what it has: a driver may have died
    between the study and the record.
    """
    found = study.get_trials(deepcopy=False)[number]
    if found.state.is_finished():
        return
    trial = Trial(study, found._trial_id)
    for target in targets:
        if str(target) not in found.constraints:
            trial.set_constraint(str(target), min(MOST, target.excess(figures) / (abs(target.limit) or 1.0)))


def is_feasible(trial: FrozenTrial) -> bool:
    """Return whether a trial breaks no constraint, as far as is known."""
    return all(value <= 0 for value in trial.constraints.values())

"""Which searched keys explain a figure, by Optuna's PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.schema import GRID_KEY

MIN_TRIALS = 10
"""Complete trials per grid; with fewer, the shares are mostly chance."""


def importance(trials: Sequence[TrialRecord], search: Mapping[str, Range], metric: str) -> dict[str, float]:
    """Return the share of each searched key but the grid, the largest first, over the complete trials of one grid.

    A share is a key's part in how the best tenth of the trials differs from all of them. The result is empty if there
    are fewer than MIN_TRIALS trials, or if all of them are alike.
    """
    import optuna
    from optuna.exceptions import ExperimentalWarning
    from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

    from tokconv.sweep.search.space import distribution

    ranges = {key: found for key, found in search.items() if key != GRID_KEY and len(found.members()) > 1}
    spaces = {key: distribution(found) for key, found in ranges.items()}
    usable = [
        trial
        for trial in trials
        if metric in trial.figures and all(found.holds(trial.values.get(key)) for key, found in ranges.items())
    ]
    if len(usable) < MIN_TRIALS or not spaces or len({trial.figures[metric] for trial in usable}) < 2:
        return {}
    # Optuna prints that a study was created, unless something has raised this level before.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize")
    for trial in usable:
        params, value = {key: trial.values[key] for key in spaces}, trial.figures[metric]
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: float(share) for key, share in found.items()}

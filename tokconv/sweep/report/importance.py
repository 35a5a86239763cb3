"""Which searched keys explain a figure, by Optuna's PED-ANOVA (Watanabe et al. 2023, arXiv:2304.10255)."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence

from tokconv.config.keys import get
from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.schema import Spec

MIN_TRIALS = 10
"""Complete trials; with fewer, the shares are mostly chance."""
NAMED_KEYS = 3
LEAST_SHARE = 0.05
"""A smaller share is not named."""


def importance(trials: Sequence[TrialRecord], search: Mapping[str, Range], metric: str) -> dict[str, float]:
    """Return the share of each searched key but the grid, the largest first, over complete trials.

    A share is a key's part in how the best tenth of the trials differs from all of them. Trials of several grids are
    compared by their rank within their own: what decides there would otherwise be the grid. The result is empty if
    there are fewer than MIN_TRIALS trials, or if all of them are alike.
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
    values = _values(usable, metric)
    if len(usable) < MIN_TRIALS or not spaces or len(set(values)) < 2:
        return {}
    # Optuna prints that a study was created, unless something has raised this level before.
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(direction="minimize" if FIGURES[metric].lower_is_better else "maximize")
    for trial, value in zip(usable, values, strict=True):
        params = {key: trial.values[key] for key in spaces}
        study.add_trial(optuna.trial.create_trial(params=params, distributions=spaces, value=value))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        found = get_param_importances(study, evaluator=PedAnovaImportanceEvaluator())
    return {key: float(share) for key, share in found.items()}


def _values(trials: Sequence[TrialRecord], metric: str) -> list[float]:
    """Return a figure of trials of one grid, or of several the share of the trials of its grid with a lower one."""
    grids: dict[int, list[float]] = {}
    for trial in trials:
        grids.setdefault(trial.grid, []).append(trial.figures[metric])
    if len(grids) == 1:
        return [trial.figures[metric] for trial in trials]
    own = [(trial.figures[metric], grids[trial.grid]) for trial in trials]
    return [sum(other < value for other in peers) / len(peers) for value, peers in own]


def judged_figures(sweep: SweepSnapshot) -> list[str]:
    """Return the figures that the search optimises and those by which champions are found, without the ratio."""
    awards = [award for verdict in sweep.verdicts for award in verdict.awards]
    names = [*sweep.spec.judged_by, *(award.criterion.figure for award in awards)]
    return [name for name in dict.fromkeys(names) if name != "compression_ratio"]


def decisive(found: Mapping[str, Mapping[str, float]]) -> str:
    """Return the keys that decided each figure, with their shares: `fvu by learning_rate 62 %, ae 20 %`."""
    parts = []
    for metric, shares in found.items():
        largest = list(shares.items())[:NAMED_KEYS]
        keys = ", ".join(f"{key.split('.', 1)[-1]} {share:.0%}" for key, share in largest if share >= LEAST_SHARE)
        parts.append(f"{FIGURES[metric].title} by {keys}")
    return "; ".join(parts)


def first_trial_notes(sweep: SweepSnapshot) -> list[str]:
    """Return which champions are first trials, the base config, which the search did not improve on."""
    first: list[str] = []
    found: list[str] = []
    for verdict in sweep.verdicts:
        for award in verdict.awards:
            if award.champion is not None:
                where = f"{award.purpose.name} at {verdict.name}"
                (first if is_first(award.champion, sweep.spec) else found).append(where)
    if not first:
        return (
            [f"Every champion was found by the search: none of the {len(found)} is the base config."] if found else []
        )
    return [
        f"{len(first)} of {len(first) + len(found)} champions are first trials, the base config, on which the search "
        f"did not improve: {', '.join(first)}."
    ]


def is_first(trial: TrialRecord, spec: Spec) -> bool:
    """Return whether a trial is the base config at its grid, as the first trials of every sweep are."""
    config = spec.base_config()
    base = {key: found.nearest(get(config, key)) for key, found in spec.search.items() if key != GRID_KEY}
    return {key: value for key, value in trial.values.items() if key != GRID_KEY} == base

"""Which epoch of a trial is judged and exported: the best one by the figure that decides, which the trial has kept."""

from __future__ import annotations

from dataclasses import replace

from tokconv.sweep.record.events import TrialRecord


def best_by(trial: TrialRecord, figure: str) -> TrialRecord:
    """Return the trial as if it had ended with its best epoch by a figure.

    A trial that compared no epochs by the figure, and any of an earlier version, is returned as it ended.
    """
    row = trial.best.get(figure)
    if row is None or row["epoch"] == trial.epochs_done:
        return trial
    return replace(trial, history=[*(before for before in trial.history if before["epoch"] < row["epoch"]), row])


def kept(trial: TrialRecord) -> tuple[TrialRecord, ...]:
    """Return the trial as it ended, and as if it had ended with each of its best epochs before."""
    found = {one.epochs_done: one for one in (trial, *(best_by(trial, figure) for figure in trial.best))}
    return tuple(found.values())

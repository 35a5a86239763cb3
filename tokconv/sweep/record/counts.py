"""Counts over a growing record, which look at each trial only until it ends, however often they are updated."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tokconv.sweep.record.events import FINISHED, Record, TrialRecord


class TrialCounts:
    """The numbers of ended trials, confirmations and epochs of a record."""

    def __init__(self) -> None:
        self.searched: Counter[str] = Counter()
        """Trials of the search that ended, by state."""
        self.confirmed = 0
        """Confirmations that ended."""
        self._epochs = 0
        self._known = [0, 0]
        self._open: tuple[list[str], list[str]] = ([], [])

    def update(self, record: Record) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Return the trials that ended since the last update, and those that run; the search's before confirmations."""
        ended: list[TrialRecord] = []
        running: list[TrialRecord] = []
        for number, trials in enumerate((record.trials, record.confirmations)):
            uids = list(self._open[number])
            if len(trials) > self._known[number]:
                uids += islice(trials, self._known[number], None)
                self._known[number] = len(trials)
            self._open[number].clear()
            for trial in map(trials.__getitem__, uids):
                if trial.state in FINISHED:
                    ended.append(trial)
                else:
                    running.append(trial)
                    self._open[number].append(trial.uid)
        self.searched.update(trial.state for trial in ended if trial.confirms is None)
        self.confirmed += sum(trial.confirms is not None for trial in ended)
        self._epochs += sum(len(trial.history) for trial in ended)
        return ended, running

    def epochs(self, running: list[TrialRecord]) -> int:
        """Return the epochs of all trials and confirmations, ended or not."""
        return self._epochs + sum(len(trial.history) for trial in running)

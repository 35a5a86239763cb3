"""Counts over a growing record, which look at each trial only until it ends, however often they are updated."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tokconv.sweep.record.events import FINISHED, TrialRecord, Trials


class TrialCounts:
    """The numbers of ended trials and confirmations of a record."""

    def __init__(self) -> None:
        self.searched: Counter[str] = Counter()
        """Trials of the search that ended, by state."""
        self.confirmed = 0
        """Confirmations that ended."""
        self._known = [0, 0]
        self._running: list[str] = []

    def update(self, record: Trials) -> tuple[list[TrialRecord], list[TrialRecord]]:
        """Return the trials that ended since the last update, and those that run; the search's before confirmations."""
        uids = list(self._running)
        for number, started in enumerate((record.trials, record.confirmations)):
            if len(started) > self._known[number]:
                uids += islice(started, self._known[number], None)
                self._known[number] = len(started)
        trials = [record.trials.get(uid) or record.confirmations[uid] for uid in uids]
        trials.sort(key=lambda trial: trial.confirms is not None)
        ended = [trial for trial in trials if trial.state in FINISHED]
        running = [trial for trial in trials if trial.state not in FINISHED]
        self._running = [trial.uid for trial in running]
        self.searched.update(trial.state for trial in ended if trial.confirms is None)
        self.confirmed += sum(trial.confirms is not None for trial in ended)
        return ended, running

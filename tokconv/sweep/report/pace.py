"""How long the rest of a sweep takes, from what this run of it has seen so far.

A trial takes a start (processes, the figures before the first epoch), its epochs, and an end (the figures that train
networks, after the last epoch). On small data, start and end take longer than all epochs, and a trial that is stopped
early has no end. So the three are measured apart, and the rest is the sum of what every trial still has before it,
divided by the trials that run at a time.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord

LONG_EPOCH = 10.0
"""Seconds. Before a trial has ended, nothing is known of its end; beside epochs that take longer, it matters little."""


@dataclass
class _Mean:
    total: float = 0.0
    count: int = 0

    def add(self, total: float, count: int = 1) -> None:
        self.total += total
        self.count += count

    def value(self, default: float = 0.0) -> float:
        return self.total / self.count if self.count else default


@dataclass(frozen=True)
class _Seen:
    """A running trial when it was last looked at."""

    epoch: int | None
    """None before its first report."""
    time: float
    """When it came there."""


class Pace:
    """Learns the parts of a trial's time, and estimates the rest of the sweep.

    Args:
        epochs: of a trial that is not stopped early.

    Example:
        >>> pace = Pace(epochs=8)                                      # doctest: +SKIP
        >>> pace.update(ended, running, now=time.monotonic())          # doctest: +SKIP
        >>> pace.seconds_left(running, time.monotonic(), searches=12, confirmations=8)      # doctest: +SKIP
        240.0
    """

    def __init__(self, epochs: int) -> None:
        self._epochs = epochs
        self._start, self._epoch, self._last = _Mean(), _Mean(), _Mean()
        self._searched, self._stopped = _Mean(), _Mean()
        self._seen: dict[str, _Seen] = {}
        self._at_a_time = 1

    def update(self, ended: Iterable[TrialRecord], running: Iterable[TrialRecord], now: float) -> None:
        """Take in the trials that ended since the last update and those that run; called after every event.

        Args:
            now: seconds of a clock that only goes forward.
        """
        ended, running = list(ended), list(running)
        self._at_a_time = max(self._at_a_time, len(running))
        for trial in (*ended, *running):
            self._look_at(trial, now)
        for trial in ended:
            self._seen.pop(trial.uid, None)
            if trial.confirms is None and trial.state != "failed":
                self._searched.add(trial.epochs_done)
                self._stopped.add(trial.state == "pruned")

    def seconds_left(
        self, running: Iterable[TrialRecord], now: float, *, searches: int, confirmations: int
    ) -> float | None:
        """Return the seconds until all trials have ended; None before a trial has ended, or had a long epoch.

        Args:
            running: trials and confirmations.
            searches: trials of the search that have not started.
            confirmations: those that have not started.
        """
        if not self._last.count and self._epoch.value() < LONG_EPOCH:
            return None
        # With a single epoch, the only interval is also the last one.
        epoch = self._epoch.value(self._last.value())
        start, end = self._start.value(), max(0.0, self._last.value() - epoch) if self._epoch.count else 0.0
        rest = [self._rest(trial, now, start, epoch, end) for trial in running]
        full = start + self._epochs * epoch + end
        # Those that run count as trials that go on: the first ones to end are the ones that were stopped.
        going_on = max(1, len(rest))
        count = self._searched.count + going_on
        epochs = (self._searched.total + going_on * self._epochs) / count
        search = start + epochs * epoch + (1 - self._stopped.total / count) * end
        total = sum(rest) + searches * search + confirmations * full
        # At the end, places stay empty: a place that is left waits for half a trial on average.
        tail = full / 2 * (1 - 1 / self._at_a_time) if searches + confirmations else 0.0
        return max([total / self._at_a_time + tail, *rest])

    def _look_at(self, trial: TrialRecord, now: float) -> None:
        epoch = trial.epochs_done if trial.history else None
        before = self._seen.get(trial.uid)
        if before is not None and before.epoch == epoch:
            return
        self._seen[trial.uid] = _Seen(epoch, now)
        # A trial that is tried once more starts at an earlier epoch again.
        if before is None or epoch is None or (before.epoch is not None and epoch < before.epoch):
            return
        seconds = now - before.time
        if before.epoch is None and epoch == 0:
            self._start.add(seconds)
            return
        trained = epoch - (before.epoch or 0)
        if epoch < self._epochs:
            self._epoch.add(seconds, trained)
        else:
            self._last.add(seconds - (trained - 1) * self._epoch.value(seconds / trained))

    def _rest(self, trial: TrialRecord, now: float, start: float, epoch: float, end: float) -> float:
        """Return the seconds that a running trial still takes."""
        left = self._epochs - trial.epochs_done
        seen = self._seen.get(trial.uid)
        since = 0.0 if seen is None else now - seen.time
        if not left:
            return 0.0
        if not trial.history:
            return max(0.0, start - since) + left * epoch + end
        return left * epoch + end - min(since, epoch + (end if left == 1 else 0.0))


def expected_confirmations(verdicts: Iterable[Verdict], most: int) -> int:
    """Return how many confirmations a search is likely to need, judged by its winners so far.

    A trial that wins for several purposes is confirmed once. A grid without a winner yet is halfway between one trial
    that wins everything and one trial per purpose.

    Args:
        most: the number if another trial wins for every purpose of every grid.
    """
    verdicts = list(verdicts)
    purposes = sum(len(verdict.awards) for verdict in verdicts)
    winners = sum(len(verdict.champions) or (1 + len(verdict.awards)) / 2 for verdict in verdicts)
    return round(most * winners / max(1, purposes))

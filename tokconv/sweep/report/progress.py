"""Shows a sweep while it runs: a live view on a terminal, one line per event in a log, a notebook or a pipe.

The live view has a fixed size. Only running trials have a row, as many as fit. Finished ones are counted, and a winner
is shown as the champion of its grid.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokconv.errors import printable
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.counts import TrialCounts
from tokconv.sweep.record.events import FINISHED, INVALID, TrialRecord
from tokconv.sweep.record.log import Record
from tokconv.sweep.report.brief_tables import best_table, running_table
from tokconv.sweep.report.pace import Pace, expected_confirmations
from tokconv.sweep.report.text import event_text, refused_text, states_text
from tokconv.system.heartbeat import Heartbeat
from tokconv.system.terminal import Clock, can_redraw, duration, escape_unencodable

LOG_INTERVAL = 15.0
REFRESH_PER_SECOND = 2


@dataclass(frozen=True)
class _Progress:
    """The record at one moment: the live view is drawn by another thread, which must not see the record change."""

    counts: Mapping[str, int]
    """State -> trials of the search in it."""
    confirmed: int
    """Confirmations that have ended."""
    running: tuple[TrialRecord, ...]
    time: float
    """When this was so."""
    seconds_left: float | None
    """None before the first epoch of this run."""
    last_failure: TrialRecord | None
    verdicts: list[Verdict]
    """Their champions are those of all trials; their trials and fronts are only the latest."""

    @property
    def finished(self) -> int:
        return sum(self.counts[state] for state in FINISHED)


class SweepDisplay:
    """Shows a sweep while it runs; a context manager.

    Args:
        name: the sweep's name.
        total: trials of the search.
        confirmations: runs that repeat the winners, as far as they are known before the search.
        epochs: epochs of a trial that is not stopped early.
        judge: returns the verdicts of all grids on some trials of the search.
        console: rich's console; by default standard output, live if that is a terminal.

    Example:
        >>> with SweepDisplay(name="demo", total=16, ...) as display:      # doctest: +SKIP
        ...     display.update(record)
    """

    def __init__(
        self,
        *,
        name: str,
        total: int,
        epochs: int,
        judge: Callable[[list[TrialRecord]], list[Verdict]],
        confirmations: int = 0,
        refused: int = 0,
        console: Console | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._name, self._total, self._epochs = name, total, epochs
        self._judge, self._confirmations, self._refused = judge, confirmations, refused
        # Otherwise FORCE_COLOR (set on many build servers) would fill a log with cursor movements.
        escape_unencodable(sys.stdout)
        self._console = console or Console(force_interactive=None if can_redraw(sys.stdout) else False)
        self._clock = clock
        self._live: Live | None = None
        self._states: dict[str, str] = {}
        self._counts = TrialCounts()
        self._progress = _Progress(Counter(), 0, (), clock(), None, None, judge([]))
        self._expected: int | None = None
        self._pace, self._heartbeat = Pace(epochs), Heartbeat(self._tell)
        self._started = self._line_due = clock()

    def __enter__(self) -> SweepDisplay:
        self._started = self._clock()
        self._line_due = self._started + LOG_INTERVAL
        if self._console.is_interactive:
            self._live = Live(
                get_renderable=self._view,
                console=self._console,
                refresh_per_second=REFRESH_PER_SECOND,
                transient=True,
            )
            self._live.start()
        else:
            grids = " ".join(verdict.name for verdict in self._progress.verdicts)
            repeats = f" and up to {self._confirmations} confirmations" if self._confirmations else ""
            self.message(f"sweep {self._name}: {self._total} trials{repeats} of {self._epochs} epochs, grids {grids}")
            self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        else:
            self._heartbeat.__exit__()
        self.message(f"sweep {self._name}: {self._counts_text()} ({duration(self._clock() - self._started)})")

    def message(self, text: str) -> None:
        """Print a line of text; the live view stays below it."""
        text = printable(text)
        if self._live is not None:
            self._console.print(Text(text))
        else:
            # Not through the console, which would wrap a log's lines at 80 columns and turn a notebook's into HTML.
            print(text, file=self._console.file, flush=True)
            self._heartbeat.shown()

    def expect(self, confirmations: int) -> None:
        """Set how many confirmations there will be, ended ones included; known once the search has ended."""
        self._confirmations = self._expected = confirmations

    def update(self, record: Record) -> None:
        """Take in the record as it is now; called after every event, from one thread.

        A trial that has ended is read once: this takes as long after ten thousand trials as after ten.
        """
        ended, running = self._counts.update(record)
        self._pace.update(ended, running, self._clock())
        self._progress = self._take(record, ended, running)
        for trial in (*ended, *running):
            before = self._states.get(trial.uid)
            # A trial that had finished when it was first seen belongs to an earlier run of a resumed sweep.
            if self._live is None and before != trial.state and (trial.state == "running" or before is not None):
                self.message(event_text(trial))
            self._states[trial.uid] = trial.state
        for point in islice(record.refused.values(), self._refused, None):
            if self._live is None:
                self.message(refused_text(point))
        self._refused = len(record.refused)
        if self._live is None and self._clock() >= self._line_due:
            self._tell()

    def _tell(self) -> None:
        """Print how far the sweep is; also called by the heartbeat's thread."""
        self._line_due = self._clock() + LOG_INTERVAL
        self.message(f"{self._counts_text()} ({self._time()})")

    def _take(self, record: Record, ended: list[TrialRecord], running: list[TrialRecord]) -> _Progress:
        before, counts = self._progress, Counter(self._counts.searched)
        counts["running"] = sum(trial.confirms is None for trial in running)
        counts[INVALID] = len(record.refused)
        complete = [trial for trial in ended if trial.state == "complete" and trial.confirms is None]
        won = {uid: record.trials[uid] for verdict in before.verdicts for uid in verdict.champions}
        failed = [trial for trial in (before.last_failure, *ended) if trial is not None and trial.state == "failed"]
        # The best of all trials is the best of the champions so far and the new trials.
        verdicts = self._judge([*won.values(), *complete]) if complete else before.verdicts
        repeats = self._expected
        if repeats is None:
            repeats = expected_confirmations(verdicts, self._confirmations)
        return _Progress(
            counts=counts,
            confirmed=self._counts.confirmed,
            running=tuple(running),
            time=self._clock(),
            seconds_left=self._pace.seconds_left(
                running,
                self._clock(),
                searches=max(0, self._total - len(record.trials)),
                confirmations=max(0, repeats - len(record.confirmations)),
            ),
            last_failure=max(failed, key=lambda trial: trial.ended or 0, default=None),
            verdicts=verdicts,
        )

    def _counts_text(self) -> str:
        now = self._progress
        states = states_text({state: now.counts[state] for state in (*FINISHED, INVALID)})
        running = f"; {len(now.running)} running" if now.running else ""
        repeats = f"; {now.confirmed}/{self._expected} confirmations" if self._expected else ""
        return f"{now.finished}/{self._total} trials finished" + (f": {states}" if states else "") + repeats + running

    def _time(self) -> str:
        """Return the time elapsed and left (`tokconv.sweep.report.pace`)."""
        now = self._clock()
        left = (self._progress.seconds_left or 0.0) - (now - self._progress.time)
        elapsed = duration(now - self._started)
        return f"{elapsed}, about {duration(left)} left" if left > 0 else elapsed

    def _view(self) -> Group:
        now = self._progress
        header = Table.grid(padding=(0, 1))
        header.add_row(
            Text(self._name, style="bold", overflow="ellipsis", no_wrap=True),
            ProgressBar(total=self._total + self._confirmations, completed=now.finished + now.confirmed, width=20),
            self._time(),
        )
        parts: list[Any] = [header, Text(self._counts_text(), overflow="ellipsis", no_wrap=True)]
        if now.last_failure is not None:
            parts.append(Text(event_text(now.last_failure), style="red", overflow="ellipsis", no_wrap=True))
        best = best_table(now.verdicts)
        if now.running:
            # Each table has a blank line, a title and a head. One line counts trials without a row, one stays free.
            room = max(3, self._console.height - len(parts) - best.row_count - 8)
            parts += [Text(), running_table(now.running[:room], self._epochs)]
            if len(now.running) > room:
                parts.append(Text(f"and {len(now.running) - room} more running", style="dim"))
        return Group(*parts, Text(), best)

"""What a person sees while a sweep runs: one live view on a terminal, one line an event in a log, notebook or pipe.

The live view has a fixed size. Only running trials have a row, as many as fit; finished ones are counts and, when they
win, the champion of their grid.
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from tokconv.sweep.judge.verdicts import Figures, Verdict, judge
from tokconv.sweep.record.counts import Tally
from tokconv.sweep.record.events import FINISHED, Record, TrialRecord
from tokconv.sweep.spec.schema import GRID_KEY, Champion
from tokconv.system.terminal import Clock, can_redraw, duration

LOG_INTERVAL = 15.0
REFRESH_PER_SECOND = 2
STATES = {"running": "running", "complete": "complete", "pruned": "stopped early", "failed": "failed"}
"""A trial's state -> how it is shown."""


@dataclass(frozen=True)
class _Snapshot:
    """The record at one moment. The live view is drawn by another thread, which must not see the record change."""

    counts: Mapping[str, int]
    """Of the search's trials, by state."""
    confirmed: int
    """Confirmations that ended."""
    running: tuple[TrialRecord, ...]
    epochs_done: int
    epochs_left: int
    last_failure: TrialRecord | None
    verdicts: list[Verdict]
    """Their champions are those of all trials; trials and front are only the latest."""

    @property
    def finished(self) -> int:
        return sum(self.counts[state] for state in FINISHED)


class SweepDisplay:
    """Shows a sweep while it runs; a context manager.

    Args:
        name: of the sweep.
        total: trials of the search.
        confirmations: runs that repeat the winners, as far as that is known before the search.
        token_grid: G.
        baselines: grid -> baseline -> figures.
        epochs: of a trial that is not stopped early.
        rule: how a grid's champion is chosen.
        console: rich's console; by default standard output, live when that is a terminal.

    Example:
        >>> with SweepDisplay(name="demo", total=16, ...) as display:      # doctest: +SKIP
        ...     display.update(record)
    """

    def __init__(
        self,
        *,
        name: str,
        total: int,
        token_grid: int,
        baselines: Mapping[int, Mapping[str, Figures]],
        epochs: int,
        rule: Champion,
        confirmations: int = 0,
        console: Console | None = None,
        clock: Clock = time.monotonic,
    ) -> None:
        self._name, self._total, self._epochs = name, total, epochs
        self._confirmations = confirmations
        self._token_grid, self._baselines, self._rule = token_grid, baselines, rule
        # Without it, FORCE_COLOR (set on many build servers) would fill a log with cursor movements.
        self._console = console or Console(force_interactive=None if can_redraw(sys.stdout) else False)
        self._clock = clock
        self._live: Live | None = None
        self._states: dict[str, str] = {}
        self._tally = Tally()
        self._snapshot = _Snapshot(Counter(), 0, (), 0, (total + confirmations) * epochs, None, self._judge([]))
        self._started = self._line_due = clock()
        self._epochs_before: int | None = None

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
            grids = " ".join(f"{grid}x{grid}" for grid in self._baselines)
            repeats = f" and {self._confirmations} confirmations" if self._confirmations else ""
            self.message(f"sweep {self._name}: {self._total} trials{repeats} of {self._epochs} epochs, grids {grids}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None
        self.message(f"sweep {self._name}: {self._counts()} ({duration(self._clock() - self._started)})")

    def message(self, text: str) -> None:
        """Print a line of text; the live view stays below it."""
        if self._live is not None:
            self._console.print(Text(text))
        else:
            # Not through the console, which would wrap a log's lines at 80 columns and turn a notebook's into HTML.
            print(text, file=self._console.file, flush=True)

    def expect(self, confirmations: int) -> None:
        """How many confirmations there will be, ended ones included; known when the search has ended."""
        self._confirmations = confirmations

    def update(self, record: Record) -> None:
        """Take in the record as it is now; to be called after every event, from one thread.

        What has ended is looked at once: this takes as long after ten thousand trials as after ten.
        """
        ended, running = self._tally.take_in(record)
        if self._epochs_before is None:
            self._epochs_before = self._tally.epochs(running)
        self._snapshot = self._take(record, ended, running)
        for trial in (*ended, *running):
            before = self._states.get(trial.uid)
            # A trial that was finished when first seen belongs to an earlier run of a resumed sweep.
            if self._live is None and before != trial.state and (trial.state == "running" or before is not None):
                self.message(_event_line(trial))
            self._states[trial.uid] = trial.state
        if self._live is None and self._clock() >= self._line_due:
            self._line_due = self._clock() + LOG_INTERVAL
            self.message(f"{self._counts()} ({self._time()})")

    def _take(self, record: Record, ended: list[TrialRecord], running: list[TrialRecord]) -> _Snapshot:
        before, counts = self._snapshot, Counter(self._tally.searched)
        counts["running"] = sum(trial.confirms is None for trial in running)
        waiting = max(0, self._total - len(record.trials))
        waiting += max(0, self._confirmations - len(record.confirmations))
        complete = [trial for trial in ended if trial.state == "complete" and trial.confirms is None]
        failed = [trial for trial in (before.last_failure, *ended) if trial is not None and trial.state == "failed"]
        return _Snapshot(
            counts=counts,
            confirmed=self._tally.confirmed,
            running=tuple(running),
            epochs_done=self._tally.epochs(running),
            epochs_left=waiting * self._epochs + sum(max(0, self._epochs - _epoch(trial)) for trial in running),
            last_failure=max(failed, key=lambda trial: trial.ended or 0, default=None),
            # The best of all is the best of the best so far and those that are new.
            verdicts=self._judge([*_champions(before.verdicts), *complete]) if complete else before.verdicts,
        )

    def _judge(self, trials: list[TrialRecord]) -> list[Verdict]:
        return judge(trials, self._rule, self._token_grid, self._baselines)

    def _counts(self) -> str:
        now = self._snapshot
        states = ", ".join(f"{now.counts[state]} {STATES[state]}" for state in FINISHED if now.counts[state])
        running = f"; {len(now.running)} running" if now.running else ""
        repeats = f"; {now.confirmed}/{self._confirmations} confirmations" if self._confirmations else ""
        return f"{now.finished}/{self._total} trials finished" + (f": {states}" if states else "") + repeats + running

    def _time(self) -> str:
        """Elapsed, and what is left at this run's pace: too long a guess while trials will be stopped early."""
        elapsed, now = self._clock() - self._started, self._snapshot
        done = now.epochs_done - (self._epochs_before or 0)
        if not now.epochs_left or done <= 0:
            return duration(elapsed)
        return f"{duration(elapsed)}, about {duration(elapsed / done * now.epochs_left)} left"

    def _view(self) -> Group:
        now = self._snapshot
        header = Table.grid(padding=(0, 1))
        header.add_row(
            Text(self._name, style="bold", overflow="ellipsis", no_wrap=True),
            ProgressBar(total=self._total + self._confirmations, completed=now.finished + now.confirmed, width=20),
            self._time(),
        )
        parts: list[Any] = [header, Text(self._counts(), overflow="ellipsis", no_wrap=True)]
        if now.last_failure is not None:
            parts.append(Text(_event_line(now.last_failure), style="red", overflow="ellipsis", no_wrap=True))
        best = best_table(now.verdicts)
        if now.running:
            # Each table has a blank line, a title and a head; one line is for trials without a row, one stays free.
            room = max(3, self._console.height - len(parts) - best.row_count - 8)
            parts += [Text(), _running_table(now.running[:room], self._epochs)]
            if len(now.running) > room:
                parts.append(Text(f"and {len(now.running) - room} more running", style="dim"))
        return Group(*parts, Text(), best)


def _champions(verdicts: list[Verdict]) -> list[TrialRecord]:
    return [verdict.champion for verdict in verdicts if verdict.champion is not None]


def compact(values: Mapping[str, Any]) -> str:
    """Searched values on one line, without the grid: `n_critic=3 lambda_gp=1.2`."""
    names = {key: _short(key, [other for other in values if other != key]) for key in values if key != GRID_KEY}
    return " ".join(f"{name}={_number(values[key])}" for key, name in names.items())


def _short(key: str, others: list[str]) -> str:
    """The shortest ending of a dotted key that no other key has."""
    parts = key.split(".")
    endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next((end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others)), key)


def _number(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _epoch(trial: TrialRecord) -> int:
    return int(trial.figures.get("epoch", 0))


def _event_line(trial: TrialRecord) -> str:
    figures, epoch = trial.figures, _epoch(trial)
    if trial.state == "running":
        begun = f"continues after epoch {epoch}" if epoch else "started"
        return f"{_name(trial)} {begun}: {trial.ratio:.3g}x {compact(trial.values)}".rstrip()
    reached = f" fvu {figures['val/fvu']:.4f}, swd {figures['val/swd']:.3f}" if figures else ""
    reason = f" {trial.reason}" if trial.state == "failed" else reached
    return f"{_name(trial)} {STATES[trial.state]} after epoch {epoch}:{reason}"


def _name(trial: TrialRecord) -> str:
    return f"trial {trial.uid}" if trial.confirms is None else f"{trial.uid} (confirms trial {trial.confirms})"


def _table(title: str, *columns: str, wide: str = "") -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        ratio = 1 if column == wide else None
        table.add_column(column, justify="left" if wide == column else "right", no_wrap=True, ratio=ratio)
    return table


def _running_table(trials: tuple[TrialRecord, ...], epochs: int) -> Table:
    table = _table("running", "trial", "ratio", "epoch", "fvu", "swd", "values", wide="values")
    for trial in trials:
        table.add_row(
            trial.uid,
            f"{trial.ratio:.3g}x",
            f"{_epoch(trial)}/{epochs}",
            _figure(trial.figures, "val/fvu", 4),
            _figure(trial.figures, "val/swd", 3),
            Text(compact(trial.values), overflow="ellipsis"),
        )
    return table


def best_table(verdicts: list[Verdict]) -> Table:
    columns = ("grid", "tokens", "ratio", "fvu", "pooling", "PCA", "gain", "swd (floor)", "targets")
    table = _table("best so far per grid (fvu beside pooling's and window PCA's)", *columns)
    for verdict in verdicts:
        figures: Figures = verdict.champion.figures if verdict.champion else {}
        floor = f" ({figures['val/swd_floor']:.3f})" if "val/swd_floor" in figures else ""
        table.add_row(
            f"{verdict.grid}x{verdict.grid}",
            str(verdict.grid**2),
            f"{verdict.ratio:.3g}x",
            Text(_figure(figures, "val/fvu", 4), style="bold"),
            _figure(verdict.baselines.get("pooling", {}), "val/fvu", 4),
            _figure(verdict.baselines.get("window_pca", {}), "val/fvu", 4),
            f"{figures['val/gain']:.0%}" if "val/gain" in figures else "-",
            _figure(figures, "val/swd", 3) + floor,
            Text("yes", style="green") if verdict.meets_targets else Text("no" if verdict.champion else "-"),
        )
    return table


def _figure(figures: Figures, name: str, digits: int) -> str:
    return f"{figures[name]:.{digits}f}" if name in figures else "-"

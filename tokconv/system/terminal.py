"""Progress of long work on a terminal or in a log, with the standard library alone.

The sweep has its own, richer view (`tokconv.sweep.report.progress`); encoding and training do not need its
dependencies.
"""

from __future__ import annotations

import io
import os
import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

from tokconv.errors import printable
from tokconv.system.heartbeat import Heartbeat

BAR = 24
TERMINAL_INTERVAL = 0.1
LOG_INTERVAL = 5.0

Clock = Callable[[], float]


def duration(seconds: float) -> str:
    """Format a time span: `42 s`, `3 min 20 s`, `1 h 05 min`, `2 d 3 h`."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    minutes = round(whole / 60)
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    hours = round(whole / 3600)
    return f"{hours // 24} d {hours % 24} h"


def data_size(count: float) -> str:
    """Format a number of bytes with three digits: `274 kB`, `94.5 GB`."""
    for unit, size in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if count >= 0.9995 * size:  # what would round to 1000 of the next smaller unit
            return f"{count / size:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"


def escape_unencodable(*streams: TextIO | None) -> None:
    """Make standard streams escape what their encoding lacks, such as a Greek name in an ASCII log, instead of failing.

    Streams that are not the interpreter's own, as in a notebook, are left alone.
    """
    for stream in streams:
        if isinstance(stream, io.TextIOWrapper) and stream.errors == "strict":
            stream.reconfigure(errors="backslashreplace")


def can_redraw(stream: TextIO) -> bool:
    """Return whether this stream is a terminal on which a line can be redrawn.

    A notebook's `!command` has a terminal too, but shows every redrawn line below the last one.
    """
    return stream.isatty() and "JPY_PARENT_PID" not in os.environ


class ProgressLine:
    """A bar that is redrawn on a terminal, or a line every few seconds elsewhere; call `line(done, total, note)`.

    As a context manager it also ends the bar if the work is interrupted, so that an error starts on a line of its own,
    and says that it goes on where a step takes long. See `progress_line`.
    """

    def __init__(self, label: str, stream: TextIO, clock: Clock) -> None:
        self._label, self._stream, self._clock = label, stream, clock
        self._on_terminal = can_redraw(stream)
        self._started = clock()
        self._first: tuple[int, float] | None = None
        self._due = self._started
        self._bar = ""
        self._newest, self._doing = "", ""
        self._since = self._started
        self._heartbeat = Heartbeat(self._go_on)

    def __call__(self, done: int, total: int, note: str = "", *, timed: bool = True) -> None:
        """Show how far the work is; cheap enough to be called at every step.

        Args:
            done: items done of `total`; the call that completes them is always shown. The first call's items may have
                been done by an earlier run, so the remaining time is estimated from the pace after that call.
            note: further information, such as the newest figures.
            timed: whether the pace so far says how long the rest takes; the pace is measured from the first such call.
        """
        now = self._clock()
        if timed:
            self._first = self._first or (done, now)
        self._newest = self._amount(done, total)
        if done < total and now < self._due:
            return
        self._due = now + (TERMINAL_INTERVAL if self._on_terminal else LOG_INTERVAL)
        text = ", ".join(part for part in (self._amount(done, total), self._time(done, total, now), note) if part)
        if not self._on_terminal:
            self._print(text)
            return
        self._draw(text)
        if done >= total:
            self.close()

    def doing(self, what: str) -> None:
        """Note what is being done now, for a step that takes long."""
        if what != self._doing:
            self._doing, self._since = what, self._clock()

    def message(self, text: str) -> None:
        """Print a line above the bar."""
        text = printable(text)
        bar, self._bar = self._bar, ""
        if bar:
            self._print(f"\r{' ' * len(bar)}\r", end="")
        self._print(text)
        self._draw(bar)

    def close(self) -> None:
        """End the line of the bar, if one is drawn."""
        if self._bar:
            self._bar = ""
            self._print()

    def __enter__(self) -> ProgressLine:
        self._heartbeat.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._heartbeat.__exit__()
        self.close()

    def _go_on(self) -> None:
        """Say that the work goes on; called by the heartbeat's thread."""
        what = f"{self._doing}, " if self._doing else ""
        text = f"{self._newest or self._label}, {what}for {duration(self._clock() - self._since)}"
        if self._on_terminal:
            self._draw(text)
        else:
            self._print(text)

    def _amount(self, done: int, total: int) -> str:
        if not self._on_terminal:
            return f"{self._label}: {done}/{total}"
        filled = round(BAR * min(1.0, done / total)) if total else BAR
        return f"{self._label} [{'#' * filled}{'-' * (BAR - filled)}] {done}/{total}"

    def _time(self, done: int, total: int, now: float) -> str:
        if done >= total:
            return f"in {duration(now - self._started)}"
        first, since = self._first or (done, now)
        return f"about {duration((now - since) / (done - first) * (total - done))} left" if done > first else ""

    def _draw(self, bar: str) -> None:
        # One column stays free: some terminals wrap a full line, and the next carriage return would miss its start.
        bar = bar[: shutil.get_terminal_size().columns - 1]
        if bar:
            self._print(f"\r{bar.ljust(len(self._bar))}", end="")
        self._bar = bar

    def _print(self, text: str = "", end: str = "\n") -> None:
        print(text, end=end, file=self._stream, flush=True)
        self._heartbeat.shown()


def progress_line(label: str, stream: TextIO | None = None, clock: Clock = time.monotonic) -> ProgressLine:
    """Return a progress line, on standard output by default.

    Example:
        >>> with progress_line("encoding") as line:
        ...     line(40, 40, "1 skipped")
        encoding: 40/40, in 0 s, 1 skipped
    """
    escape_unencodable(stream or sys.stdout)
    return ProgressLine(label, stream or sys.stdout, clock)

"""A sign of life from work that says nothing for long."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

SILENCE = 40.0
"""Seconds without a line after which a log gets one: no minute passes in silence, also if a machine is busy."""


class Heartbeat:
    """Calls a function whenever nothing was shown for some seconds; a context manager.

    Args:
        beat: is called in a thread of its own, and shows something.
        seconds: of silence.

    Example:
        >>> with Heartbeat(lambda: print("still fitting")) as heartbeat:      # doctest: +SKIP
        ...     fit()
    """

    def __init__(self, beat: Callable[[], None], seconds: float = SILENCE) -> None:
        self._beat, self._seconds = beat, seconds
        self._due = time.monotonic() + seconds
        self._ended = threading.Event()
        self._thread: threading.Thread | None = None

    def shown(self) -> None:
        """Start the time anew: something was shown."""
        self._due = time.monotonic() + self._seconds

    def __enter__(self) -> Heartbeat:
        self.shown()
        self._thread = threading.Thread(target=self._watch, name="heartbeat", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._ended.set()
        if self._thread is not None:
            self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(max(0.0, self._due - time.monotonic())):
            if time.monotonic() >= self._due:
                self._beat()
                self.shown()

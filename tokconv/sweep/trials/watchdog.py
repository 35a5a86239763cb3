"""A trial that hangs: nothing waits for it longer than its spec allows.

An epoch that does not end within `resources.trial_timeout` ends its process. Ray Tune runs the trial once more, from
its last checkpoint; then it is failed, and its resources are free.
"""

from __future__ import annotations

import os
import sys
import threading
from types import TracebackType

EXIT_CODE = 75


def hung(seconds: float) -> str:
    """The reason of a trial that was ended for it."""
    return f"no epoch ended within resources.trial_timeout, {seconds:g} s"


class Watchdog:
    """Ends this process unless it is fed in time; leaving the block ends the watch.

    Args:
        seconds: from one feeding to the next; None never bites.

    Example:
        >>> with Watchdog(600) as watchdog:      # doctest: +SKIP
        ...     for epoch in range(epochs):
        ...         train(epoch)
        ...         watchdog.feed()
    """

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds
        self._fed, self._done = threading.Event(), False

    def feed(self) -> None:
        self._fed.set()

    def __enter__(self) -> Watchdog:
        if self._seconds is not None:
            threading.Thread(target=self._watch, args=(self._seconds,), name="watchdog", daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done = True
        self._fed.set()

    def _watch(self, seconds: float) -> None:
        while not self._done:
            if not self._fed.wait(seconds):
                print(f"tokconv: {hung(seconds)}", file=sys.stderr, flush=True)
                # What hangs may never come back to Python, where an exception could reach it.
                os._exit(EXIT_CODE)
            self._fed.clear()

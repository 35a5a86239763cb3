"""A watchdog for trials that hang: nothing waits for a trial longer than its spec allows.

If an epoch does not end within `resources.trial_timeout`, the watchdog ends its process. Ray Tune runs the trial once
more from its last checkpoint; if it hangs again it has failed, and its resources are free.
"""

from __future__ import annotations

import os
import sys
import threading

EXIT_CODE = 75


def timeout_reason(seconds: float) -> str:
    """Return the reason that is recorded for a trial that hung."""
    return f"no epoch ended within resources.trial_timeout, {seconds:g} s"


class Watchdog:
    """A thread that ends this process unless it is fed in time; leaving the block ends the watch.

    Args:
        seconds: the longest time from one feeding to the next; 0 for no limit.

    Example:
        >>> with Watchdog(600) as watchdog:      # doctest: +SKIP
        ...     for epoch in range(epochs):
        ...         train(epoch)
        ...         watchdog.feed()
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._fed, self._done = threading.Event(), False

    def feed(self) -> None:
        """Start the time anew."""
        self._fed.set()

    def __enter__(self) -> Watchdog:
        if self._seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done = True
        self._fed.set()

    def _watch(self) -> None:
        while not self._done:
            if not self._fed.wait(self._seconds):
                print(f"tokconv: {timeout_reason(self._seconds)}", file=sys.stderr, flush=True)
                # Code that hangs may never return to Python, where an exception could reach it.
                os._exit(EXIT_CODE)
            self._fed.clear()

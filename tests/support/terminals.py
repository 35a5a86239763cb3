"""A clock that a test sets, and a stream that says it is a terminal."""

from __future__ import annotations

import io


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

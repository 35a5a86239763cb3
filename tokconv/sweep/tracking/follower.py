"""Delivers a sweep's record to another program, in order and at least once, even if that program is often away.

The record is the only queue: a thread reads what was appended to it, hands it over in batches, and writes to a small
file how far it came. Whoever appends events never waits for the delivery.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from tokconv.sweep.record.events import Event
from tokconv.sweep.record.log import read_events
from tokconv.system.files import write_text
from tokconv.system.uris import without_credentials

BATCH_EVENTS = 500
POLL_SECONDS = 0.5
FIRST_WAIT, LONGEST_WAIT = 0.5, 15.0
"""Seconds between attempts, doubled after each failed one."""


class RefusedError(Exception):
    """The destination answers and will not take the events until its user does something; the text says what."""


class Destination(Protocol):
    """Where events go. Both methods may raise anything, and are then called again.

    `RefusedError` is reported at once, and the end of a sweep does not wait for it to pass. Every other error is taken
    for an outage if it comes twice in a row: the first may only mean that what `open` found is gone.
    """

    def open(self) -> str:
        """Connect anew and return its identity; after a change, delivery starts from the first event."""

    def deliver(self, events: Sequence[Event]) -> None:
        """Write events. Events that were delivered before must change nothing."""


@dataclass(frozen=True)
class Delivery:
    """How far a follower came; `str()` is the sentence for the user."""

    delivered: int
    total: int
    message: str

    @property
    def complete(self) -> bool:
        return self.delivered == self.total

    def __str__(self) -> str:
        return self.message


class Follower:
    """A daemon thread that follows a record until `close`.

    Args:
        events: the record's file; it need not exist yet.
        cursor: a file, written after every batch. If it is missing, damaged or of another destination, every event is
            delivered again.
        name: the destination's name in messages.
        on_message: called once, from the thread, when delivery first fails.
    """

    def __init__(
        self, events: Path, destination: Destination, *, cursor: Path, name: str, on_message: Callable[[str], None]
    ) -> None:
        self._events, self._destination, self._cursor = events, destination, cursor
        self._name, self._on_message = name, on_message
        self._identity: str | None = None
        self._offset = 0
        self._size = BATCH_EVENTS
        self._error = ""
        self._warned = self._refused = self._closing = self._abandoned = False
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"deliver to {name}", daemon=True)
        self._thread.start()

    def close(self, timeout: float) -> Delivery:
        """Deliver the rest, for at most `timeout` seconds, and return how far it came. Failures there are not raised.

        Calling it twice has no further effect.
        """
        self._closing = True
        self._wake.set()
        self._thread.join(timeout)
        self._abandoned = True
        self._wake.set()
        ends = [end for _, end in read_events(self._events)]
        delivered = sum(end <= self._offset for end in ends)
        message = f"{self._name}: all {len(ends)} events delivered"
        if delivered < len(ends):
            # Without an error, the last attempt has not come back.
            reason = self._error or f"no answer within {timeout:g} s"
            message = (
                f"{self._name}: {len(ends) - delivered} of {len(ends)} events not delivered ({reason}); "
                f"they are kept in {self._events}, and --resume delivers them{' after that' if self._refused else ''}"
            )
        return Delivery(delivered, len(ends), message)

    def _run(self) -> None:
        wait, failures = FIRST_WAIT, 0
        while not self._abandoned:
            # Read before the record is read: the last pass then sees everything that was appended before close().
            closing = self._closing
            try:
                moved = self._advance()
            except RefusedError as error:
                self._identity, self._refused, self._error = None, True, str(error)
                self._note(f"{self._name}: takes nothing ({error}); the sweep goes on, and what it reports is kept")
                if closing:
                    return
                # Its user may mend it while the sweep runs.
                self._pause(LONGEST_WAIT)
                continue
            except Exception as error:  # A failure of another program must never become one of the sweep.
                # A server that fails now and then may take a few events where it would fail over many.
                self._identity, self._size = None, max(1, self._size // 4)
                self._refused, self._error, failures = False, one_line(error), failures + 1
                if failures > 1:
                    self._note(
                        f"{self._name}: cannot be reached ({self._error}); the sweep goes on, and what it reports is "
                        "delivered later"
                    )
                self._pause(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            self._error, wait, self._size = "", FIRST_WAIT, min(BATCH_EVENTS, 2 * self._size)
            self._refused, failures = False, 0
            if closing and not moved:
                return
            if not moved:
                self._pause(POLL_SECONDS)

    def _advance(self) -> bool:
        """Deliver one batch; return False if there is nothing new."""
        if self._identity is None:
            if next(read_events(self._events), None) is None:
                return False
            identity = self._destination.open()
            self._identity, self._offset = identity, self._read_cursor(identity)
        batch = list(islice(read_events(self._events, self._offset), self._size))
        if not batch:
            return False
        self._destination.deliver([event for event, _ in batch])
        self._offset = batch[-1][1]
        write_text(self._cursor, json.dumps({"place": self._identity, "offset": self._offset}) + "\n")
        return True

    def _read_cursor(self, identity: str) -> int:
        try:
            cursor = json.loads(self._cursor.read_text(encoding="utf-8"))
            offset = int(cursor["offset"]) if cursor["place"] == identity else 0
            with self._events.open("rb") as record:
                record.seek(max(0, offset - 1))
                # In a record that was edited or replaced, a line may end elsewhere.
                return offset if offset > 0 and record.read(1) == b"\n" else 0
        except (OSError, ValueError, TypeError, KeyError):
            return 0

    def _note(self, message: str) -> None:
        if not self._warned:
            self._warned = True
            self._on_message(message)

    def _pause(self, seconds: float) -> None:
        """Wait; `close` ends the wait early, so that one more attempt is made at once."""
        self._wake.wait(seconds)
        self._wake.clear()


def one_line(error: BaseException) -> str:
    """Return the first 200 characters of an error on one line."""
    text = without_credentials(" ".join(f"{type(error).__name__}: {error}".split()))
    return text if len(text) <= 200 else text[:197] + "..."

"""The lease on a sweep that lies at a URL: an object there names the driver."""

from __future__ import annotations

import _thread
import json
import os
import socket
import threading
import uuid
from typing import Any

import psutil

from tokconv.errors import SweepError, printable
from tokconv.sweep.record.driver import stop_signal
from tokconv.system.storage import Remote

LEASE = "driver.json"
BEAT_SECONDS = 10.0
WATCH_SECONDS = 45.0
"""A driver that has not written for this long is gone. Only changes count: no clocks are compared."""


class Lease:
    """An object that the driver at work writes again every BEAT_SECONDS.

    It protects against the ordinary accident: a sweep resumed on one machine while it runs on another. The second
    driver refuses if it sees the object change, and takes over if it does not. A driver that was cut off for so long
    that another one took over stops as soon as it finds out. This is not a strict lock: two drivers that start within
    the same second may both pass; both then write until the next beat stops one of them.
    """

    def __init__(self, remote: Remote) -> None:
        self._object, self._id = remote / LEASE, uuid.uuid4().hex
        self._count = 0
        self._end = threading.Event()
        self.held = False

    def __enter__(self) -> Lease:
        self._wait_for_others()
        self._write()
        # The last writer holds the lease.
        if not self._mine(self._read()):
            raise self._refusal(self._read())
        self.held = True
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._end.set()
        self._thread.join(2 * BEAT_SECONDS)
        if self.held:
            self.held = False
            try:
                self._object.write(json.dumps({"id": self._id, "ended": True}).encode())
            except OSError as late:  # a StorageError, or no room for a temporary file
                print(f"{late}; the next driver waits {WATCH_SECONDS:g} s to see that this one has ended")

    def _wait_for_others(self) -> None:
        before = self._read()
        if before is None or before.get("ended") or _has_died_here(before):
            return
        print(
            f"a driver on {printable(before.get('host'))} has not signed off; watching for {WATCH_SECONDS:g} s whether "
            "it is still at work",
            flush=True,
        )
        self._end.wait(WATCH_SECONDS)
        after = self._read()
        if after is not None and after != before and not after.get("ended"):
            raise self._refusal(after)

    def _beat(self) -> None:
        while not self._end.wait(BEAT_SECONDS):
            try:
                found = self._read()
                if not self._mine(found):
                    self.held = False
                    print(f"{self._refusal(found)}; this driver stops", flush=True)
                    _thread.interrupt_main(stop_signal())
                    return
                self._write()
            except OSError:  # a StorageError, or no room for a temporary file
                # The mirror reports the outage; afterwards this loop sees whether another driver took over.
                continue

    def _read(self) -> dict[str, Any] | None:
        return _read(self._object)

    def _write(self) -> None:
        self._count += 1
        content = {"id": self._id, "host": socket.gethostname(), "pid": os.getpid(), "beat": self._count}
        self._object.write(json.dumps(content).encode())

    def _mine(self, found: dict[str, Any] | None) -> bool:
        return found is not None and found.get("id") == self._id

    def _refusal(self, found: dict[str, Any] | None) -> SweepError:
        who = f"process {found.get('pid')} on {found.get('host')}" if found else "another process"
        return SweepError(f"{self._object.url}: {who} is running this sweep; wait for it or end it")


def host_at_work(remote: Remote) -> str | None:
    """Return the machine whose driver has not signed off from a sweep at a URL; None if there is none."""
    found = _read(remote / LEASE)
    return None if found is None or found.get("ended") or _has_died_here(found) else str(found.get("host"))


def _read(place: Remote) -> dict[str, Any] | None:
    try:
        found = json.loads(place.read() or b"null")
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _has_died_here(found: dict[str, Any]) -> bool:
    """Return whether the driver was a process of this machine that no longer exists."""
    here, pid = found.get("host") == socket.gethostname(), found.get("pid")
    return here and isinstance(pid, int) and not psutil.pid_exists(pid)

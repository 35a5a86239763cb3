"""The lease of a sweep at a URL: one driver at a time, and a silent one is taken over."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from pathlib import Path

import pytest
from support.objects import URL, ObjectServer

from tokconv.errors import SweepError
from tokconv.sweep.record import lease as leases
from tokconv.sweep.record.lease import LEASE, Lease
from tokconv.system.storage import Remote

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, in its own threads


def test_two_drivers_do_not_work_on_one_sweep(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.5)
    place = Remote(f"{URL}/sweeps/tiny-001")
    with Lease(place) as first:
        with pytest.raises(SweepError, match=f"process {os.getpid()} on .* is running this sweep"), Lease(place):
            pass
        assert first.held
    with Lease(place):
        pass
    # The lease of a silent driver on another machine is taken over after a time of watching.
    (place / LEASE).write(json.dumps({"id": "x", "host": "elsewhere", "pid": 1, "beat": 7}).encode())
    with Lease(place) as taken:
        assert taken.held
        assert "a driver on elsewhere has not signed off" in capsys.readouterr().out
        # If the silent driver comes back, it finds out and stops.
        (place / LEASE).write(json.dumps({"id": "x", "host": "elsewhere", "pid": 1, "beat": 8}).encode())
        with pytest.raises(KeyboardInterrupt):
            _live(20)
        assert not taken.held
    assert json.loads((place / LEASE).read() or b"")["id"] == "x"


def test_a_lease_outlives_a_moment_without_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    refused, write = threading.Event(), Remote.write

    def full(self: Remote, content: bytes) -> None:
        refused.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def beats() -> int:
        return int(json.loads((tmp_path / LEASE).read_bytes())["beat"])

    with Lease(Remote(f"file://{tmp_path}")) as held:
        monkeypatch.setattr(Remote, "write", full)
        assert refused.wait(10)
        before = beats()
        monkeypatch.setattr(Remote, "write", write)
        deadline = time.monotonic() + 10
        while beats() == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held.held
        assert beats() > before


def _live(seconds: float) -> None:
    """Wait as a driver does: a thread interrupts it between two steps, not within one."""
    for _ in range(round(10 * seconds)):
        time.sleep(0.1)

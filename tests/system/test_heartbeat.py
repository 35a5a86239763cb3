"""A sign of life from work that says nothing."""

from __future__ import annotations

import io
import threading
import time

import pytest

from tokconv.system import heartbeat
from tokconv.system.heartbeat import Heartbeat
from tokconv.system.terminal import ProgressLine

WAIT = 30.0


def test_it_beats_in_silence_and_not_otherwise() -> None:
    beaten = threading.Event()
    with Heartbeat(beaten.set, 3600):
        pass
    assert not beaten.is_set()
    with Heartbeat(beaten.set, 0.01):
        assert beaten.wait(WAIT)


def test_what_is_shown_delays_it() -> None:
    beaten = threading.Event()
    with Heartbeat(beaten.set, 0.5) as beat:
        start = time.monotonic()
        while time.monotonic() - start < 0.7:
            beat.shown()
            time.sleep(0.01)
        assert not beaten.is_set()


def test_a_progress_line_says_what_takes_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.Heartbeat.__init__, "__defaults__", (0.02,))
    stream = io.StringIO()
    with ProgressLine("baselines", stream, lambda: 0.0) as line:
        line(3, 52, "pooling")
        line.doing("figures of ToMe")
        start = time.monotonic()
        while "ToMe" not in stream.getvalue() and time.monotonic() - start < WAIT:
            time.sleep(0.01)
    first, *beats = stream.getvalue().splitlines()
    assert first == "baselines: 3/52, pooling"
    assert beats[-1] == "baselines: 3/52, figures of ToMe, for 0 s"


def test_work_without_any_progress_yet_has_its_label(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat.Heartbeat.__init__, "__defaults__", (0.02,))
    stream = io.StringIO()
    with ProgressLine("encoding", stream, lambda: 0.0):
        start = time.monotonic()
        while not stream.getvalue() and time.monotonic() - start < WAIT:
            time.sleep(0.01)
    assert stream.getvalue().startswith("encoding, for 0 s\n")

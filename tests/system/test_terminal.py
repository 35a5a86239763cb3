"""Progress lines: rare in a log, one line on a terminal, with the time left."""

from __future__ import annotations

import io

import pytest
from support.terminals import Clock, Terminal

from tokconv.system.terminal import can_redraw, duration, progress_line


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (59.6, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3599.7, "1 h 00 min"),
        (3900, "1 h 05 min"),
        (86399, "1 d 0 h"),
        (183600, "2 d 3 h"),
        (-1, "0 s"),
    ],
)
def test_duration(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_progress_lines_in_a_log_are_rare_and_plain() -> None:
    clock, stream = Clock(), io.StringIO()
    show = progress_line("encoding", stream, clock)
    for done in range(1, 101):
        clock.now += 0.125
        show(done, 100, "1 skipped")
    text = stream.getvalue().splitlines()
    assert text == [
        "encoding: 1/100, 1 skipped",
        "encoding: 41/100, about 7 s left, 1 skipped",
        "encoding: 81/100, about 2 s left, 1 skipped",
        "encoding: 100/100, in 12 s, 1 skipped",
    ]


def test_a_progress_line_estimates_without_the_work_of_an_earlier_run() -> None:
    clock, stream = Clock(), io.StringIO()
    show = progress_line("encoding", stream, clock)
    show(90, 100)
    clock.now += 20
    show(92, 100)
    assert stream.getvalue().splitlines()[-1] == "encoding: 92/100, about 1 min 20 s left"


def test_a_progress_line_on_a_terminal_stays_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    clock, stream = Clock(), Terminal()
    with progress_line("training", stream, clock) as show:
        for done in range(1, 10):
            clock.now += 1
            show(done, 10, "a note that is much too long for a terminal of so few columns")
        show.message("epoch 1/2")
    text = stream.getvalue()
    before, after = text.split("epoch 1/2\n")
    assert "\n" not in before
    assert all(len(frame) < 60 for frame in before.split("\r"))
    # After the interruption the bar stands below the message, and what follows starts on its own line.
    assert after.startswith("\rtraining [####")
    assert after.endswith("\n")


def test_a_finished_progress_line_ends_once() -> None:
    stream = Terminal()
    with progress_line("training", stream, Clock()) as show:
        show(10, 10)
    assert stream.getvalue().count("\n") == 1


def test_a_notebook_has_plain_lines_although_it_is_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("JPY_PARENT_PID", raising=False)
    assert can_redraw(Terminal())
    assert not can_redraw(io.StringIO())
    monkeypatch.setenv("JPY_PARENT_PID", "1")
    assert not can_redraw(Terminal())

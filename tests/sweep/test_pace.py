"""The time left of a sweep, told early and within a factor of 1.5 of what it takes."""

from __future__ import annotations

import heapq
import random
from collections.abc import Iterator

import pytest
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.sweep.judge.verdicts import Verdict, judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.pace import Pace, expected_confirmations
from tokconv.sweep.spec.rules import Rules

EPOCHS = 6
GRIDS = (4, 6, 8, 12)


def at(uid: str, epoch: int | None, state: str = "running", confirms: str | None = None) -> TrialRecord:
    """A trial after an epoch; None before its first report."""
    found = TrialRecord(uid, {}, 6, 16.0, started=0, state=state, confirms=confirms)
    if epoch is not None:
        found.history = [{"epoch": float(number)} for number in range(epoch + 1)]
    return found


def test_nothing_is_known_before_the_first_trial_ends_unless_epochs_are_long() -> None:
    pace, long = Pace(EPOCHS), Pace(EPOCHS)
    for each, seconds in ((pace, 2.0), (long, 60.0)):
        each.update([], [at("0", None)], 0.0)
        each.update([], [at("0", 0)], 10.0)
        assert each.seconds_left([at("0", 0)], 10.0, searches=3, confirmations=3) is None
        each.update([], [at("0", 1)], 10.0 + seconds)
    assert pace.seconds_left([at("0", 1)], 12.0, searches=3, confirmations=3) is None
    assert long.seconds_left([at("0", 1)], 70.0, searches=1, confirmations=1) == pytest.approx(300 + 2 * 370)


def test_start_epochs_and_end_are_counted_apart() -> None:
    pace = Pace(EPOCHS)
    pace.update([], [at("0", None)], 0.0)
    for epoch in range(EPOCHS):
        pace.update([], [at("0", epoch)], 10.0 + 2 * epoch)
    pace.update([], [at("0", EPOCHS)], 30.0)
    pace.update([at("0", EPOCHS, "complete")], [at("1", None)], 31.0)
    # 10 s of start, 12 of epochs and 8 of the end for each.
    assert pace.seconds_left([], 31.0, searches=3, confirmations=2) == pytest.approx(5 * (10 + 12 + 8))
    assert pace.seconds_left([at("1", None)], 35.0, searches=0, confirmations=0) == pytest.approx(6 + 12 + 8)


def test_trials_that_run_side_by_side_share_the_rest() -> None:
    pace = Pace(EPOCHS)
    pace.update([], [at("0", 0), at("1", 0)], 0.0)
    running = [at("0", 1), at("1", 1)]
    pace.update([], running, 30.0)
    # The last trial to end is late by a quarter of 180 s on average.
    expected = (2 * 150 + 2 * 180) / 2 + 45
    assert pace.seconds_left(running, 30.0, searches=2, confirmations=0) == pytest.approx(expected)
    # A single trial that is left takes its own time.
    assert pace.seconds_left(running[:1], 30.0, searches=0, confirmations=0) == pytest.approx(150)


def test_trials_that_are_stopped_early_make_the_rest_shorter() -> None:
    pace, kept = Pace(EPOCHS), Pace(EPOCHS)
    for each, last, state in ((pace, 2, "pruned"), (kept, EPOCHS, "complete")):
        each.update([], [at("0", 0), at("1", 0)], 0.0)
        each.update([], [at("0", 1), at("1", 1)], 20.0)
        each.update([at("0", last, state)], [at("1", 1)], 20.0 * last)
    stopped, full = (one.seconds_left([at("1", 1)], 40.0, searches=8, confirmations=0) for one in (pace, kept))
    assert stopped is not None
    assert full is not None
    assert 0.5 * full < stopped < 0.9 * full


def test_a_resumed_trial_has_no_start() -> None:
    pace = Pace(EPOCHS)
    pace.update([at("0", EPOCHS, "complete")], [at("1", 3)], 0.0)
    pace.update([], [at("1", 4)], 50.0)
    assert pace.seconds_left([at("1", 4)], 60.0, searches=1, confirmations=0) == pytest.approx(90 + 300)


def test_a_trial_that_is_tried_again_is_counted_from_there() -> None:
    pace = Pace(EPOCHS)
    pace.update([], [at("0", 0)], 0.0)
    pace.update([], [at("0", 1)], 20.0)
    pace.update([], [at("0", 0)], 600.0)
    pace.update([], [at("0", 1)], 620.0)
    assert pace.seconds_left([at("0", 1)], 620.0, searches=0, confirmations=0) == pytest.approx(100)


@pytest.mark.parametrize(("start", "epoch", "end"), [(10, 1.5, 8), (0.2, 1.5, 8), (10, 60, 30), (12, 0.2, 0.5)])
@pytest.mark.parametrize("at_a_time", [1, 2, 8])
@pytest.mark.parametrize("stopped", [0.0, 0.4])
def test_the_first_estimate_is_near_the_truth(
    start: float, epoch: float, end: float, at_a_time: int, stopped: float
) -> None:
    """A sweep of 16 trials and 10 confirmations, as its clock goes: what is said first, and what it takes."""
    pace, said, done = Pace(EPOCHS), [], 0.0
    for now, ended, running, searches, repeats in _simulated(start, epoch, end, at_a_time, stopped):
        pace.update(ended, running, now)
        left = pace.seconds_left(running, now, searches=searches, confirmations=repeats)
        if left is not None:
            said.append((now, left))
        done = now
    # Within the last trial, a second is a second.
    for now, left in said[:1] + said[len(said) // 2 : -2 * at_a_time : 7]:
        assert (done - now) / 1.5 - start <= left <= (done - now) * 1.5 + start
    first, left = said[0]
    assert (done - first) / 1.5 < left < (done - first) * 1.5


def _simulated(
    start: float, epoch: float, end: float, at_a_time: int, stopped: float
) -> Iterator[tuple[float, list[TrialRecord], list[TrialRecord], int, int]]:
    """Yield every event: time, ended and running trials, searches and confirmations that have not started."""
    chance = random.Random(0)
    waiting = [(f"{number:05d}", None) for number in range(16)] + [(f"c{number}", "00000") for number in range(10)]
    events: list[tuple[float, int, str, int | None, str]] = []
    confirms = dict(waiting)
    running: dict[str, TrialRecord] = {}
    started: set[str] = set()
    order = 0

    def begin(now: float) -> None:
        nonlocal order
        if not waiting:
            return
        uid, of = waiting.pop(0)
        slow = chance.uniform(0.8, 1.25)
        last = 2 if of is None and int(uid) >= 4 and chance.random() < stopped else EPOCHS
        times: list[tuple[float, int | None, str]] = [(0.0, None, "running"), (start * slow, 0, "running")]
        for number in range(1, last + 1):
            more = epoch * slow + (end * slow if number == EPOCHS else 0.0)
            times.append((times[-1][0] + more, number, "running"))
        times.append((times[-1][0], last, "complete" if last == EPOCHS else "pruned"))
        for after, number_or_none, state in times:
            heapq.heappush(events, (now + after, order := order + 1, uid, number_or_none, state))

    for _ in range(at_a_time):
        begin(0.0)
    while events:
        now, _, uid, number, state = heapq.heappop(events)
        found = at(uid, number, state, confirms[uid])
        ended = [found] if state != "running" else []
        running.pop(uid, None)
        if not ended:
            running[uid] = found
        else:
            begin(now)
        started.add(uid)
        searches = sum(of is None for one, of in confirms.items() if one not in started)
        yield now, ended, list(running.values()), searches, len(confirms) - len(started) - searches


def _verdicts(*trials: TrialRecord) -> list[Verdict]:
    rows = {
        grid: {name: {**row, "val/auc_token": 0.9} for name, row in named.items()}
        for grid, named in baselines(*GRIDS).items()
    }
    return judge(trials, Rules(), TOKEN_GRID, rows)


def test_confirmations_are_expected_by_the_winners_so_far() -> None:
    most = 2 * 2 * len(GRIDS)
    assert expected_confirmations(_verdicts(), most) == 12
    both = [trial(f"{grid:05d}", grid, **{"val/auc_token": 0.6}) for grid in GRIDS]
    assert expected_confirmations(_verdicts(*both), most) == 8
    other = trial("00001", 6, fvu=0.01, **{"val/auc_token": 0.7})
    assert expected_confirmations(_verdicts(*both, other), most) == 10
    assert expected_confirmations([], 0) == 0

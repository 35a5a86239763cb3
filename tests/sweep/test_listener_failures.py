"""Trials that fail, exports that fail, lost processes, full disks: what the record says, and what ends the sweep."""

from __future__ import annotations

import threading
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError
from support.desks import Desk

from tokconv.errors import SweepError
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.trials.tuning import lack_of_memory_explained

LOST = "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc"


@pytest.mark.parametrize(
    ("last_result", "error", "reason"),
    [
        ({"epoch": 1, "epochs": 3, FAILURE: "train/ae is not finite"}, None, "train/ae is not finite"),
        ({FAILURE: "diverged"}, "Traceback\nOther: x", "diverged"),
        ({"epoch": 3, "epochs": 3}, "Traceback (most recent call last):\n  File\nOOM: full  \n\n", "OOM: full"),
        ({}, "RuntimeError: dead", "RuntimeError: dead"),
        (None, "RuntimeError: dead", "RuntimeError: dead"),
        (None, None, "the trial ended without a result"),
        ({"trial_id": "x"}, None, "the trial ended without a result"),
        (None, " \n ", "the trial ended without a result"),
        (None, "one\ntwo", "two"),
        (None, "x" * 9000, "x" * 500),
    ],
)
def test_why_a_trial_failed(desk: Desk, last_result: Any, error: str | None, reason: str) -> None:
    trial = desk.start()
    trial.last_result = last_result
    if error is not None:
        desk.fail(trial, "an earlier one")
        desk.fail(trial, error)
    desk.listener.on_trial_error(0, [], trial)
    desk.listener.close()
    ended = desk.events("trial_ended")
    assert [(event["state"], event["reason"]) for event in ended] == [("failed", reason)]
    assert desk.finished == []


def test_a_trial_without_an_objectives_figure_is_failed_with_the_reason(desk: Desk) -> None:
    trial = desk.start()
    desk.report(trial, 3)
    del trial.last_result["val/fvu"]
    desk.listener.on_trial_complete(0, [], trial)
    desk.listener.close()
    [ended] = desk.events("trial_ended")
    assert (ended["state"], ended["reason"]) == ("failed", "ended without val/fvu, an objective of this sweep")
    assert desk.finished == []


def test_a_common_failure_of_the_first_trials_is_reported(desk: Desk) -> None:
    for number in range(5):
        assert desk.listener.common_failure is None
        trial = desk.start(f"{number:05d}")
        trial.last_result = {FAILURE: f"the loss is not finite at step {number}"}
        desk.listener.on_trial_complete(0, [], trial)
    assert desk.listener.common_failure == "the loss is not finite at step 0"


@pytest.mark.parametrize("other", ["another reason", None])
def test_there_is_no_common_failure_if_one_trial_fails_otherwise_or_not_at_all(desk: Desk, other: str | None) -> None:
    for number in range(7):
        if number == 2 and other is None:
            desk.listener.on_trial_complete(0, [], desk.run(f"{number:05d}"))
            continue
        trial = desk.start(f"{number:05d}")
        trial.last_result = {FAILURE: other if number == 2 else "the loss is not finite"}
        desk.listener.on_trial_complete(0, [], trial)
    assert desk.listener.common_failure is None


def test_a_failed_export_is_raised_at_the_end_and_spares_the_others(desk: Desk) -> None:
    desk.broken = {"00000": ValueError("first"), "00002": ValueError("second")}
    for number in range(4):
        desk.run(f"{number:05d}")
    with pytest.raises(ValueError, match="first"):
        desk.listener.close()
    assert [event["trial"] for event in desk.events("trial_artifacts")] == ["00001", "00003"]
    assert [event["state"] for event in desk.events("trial_ended")] == ["complete"] * 4


def test_after_an_error_the_exports_that_wait_are_left_to_the_next_driver(desk: Desk) -> None:
    at_work, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        at_work.set()
        assert go_on.wait(10)

    def interrupted() -> None:
        for number in range(3):
            desk.run(f"{number:05d}")
        assert at_work.wait(10)
        threading.Timer(0.2, go_on.set).start()
        raise KeyboardInterrupt

    desk.before_finish = wait
    with pytest.raises(KeyboardInterrupt), desk.listener:
        interrupted()
    assert [event["trial"] for event in desk.events("trial_artifacts")] == ["00000"]


@pytest.mark.parametrize(
    ("error", "allowed"),
    [(LOST, 20), ("ray::ImplicitFunc.train() (pid=7)\nValueError: a bug", 1), ("", 20)],
    ids=["lost", "own", "unknown"],
)
def test_a_lost_process_costs_nothing_and_an_own_error_one_more_try(desk: Desk, error: str, allowed: int) -> None:
    trial = desk.start()
    trial.max_failures, trial.run_metadata = 20, SimpleNamespace(num_failures=1)
    desk.fail(trial, error)
    desk.listener.on_trial_recover(0, [], trial)
    assert trial.max_failures == allowed
    assert not desk.events("trial_ended")


def test_a_full_disk_fails_no_trial_and_stops_the_sweep(desk: Desk) -> None:
    trial = desk.start()
    desk.fail(trial, "ray::ImplicitFunc.train()\nOSError: [Errno 28] No space left on device: '/data/trials/00000'")
    for callback in (desk.listener.on_trial_recover, desk.listener.on_trial_error):
        with pytest.raises(OSError, match="No space left") as raised:
            callback(0, [], trial)
        assert raised.value.filename == "/data/trials/00000"
    assert not desk.events("trial_ended")


def test_trials_that_ray_ends_for_want_of_memory_end_the_sweep_with_advice() -> None:
    def tune(cause: Exception) -> None:
        with lack_of_memory_explained():
            raise RuntimeError("Caught unexpected exception") from cause

    with pytest.raises(SweepError, match=r"memory ran out \(.*22 GB used.*lower concurrency.*--resume"):
        tune(OutOfMemoryError("Memory on the node was 22 GB used / 23 GB limit\nand more"))
    with pytest.raises(RuntimeError, match="unexpected"):
        tune(ValueError("other"))

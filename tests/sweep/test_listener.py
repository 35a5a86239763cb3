"""What Ray Tune reports ends up in the record, and every complete trial, and no other, is exported once."""

from __future__ import annotations

import json
import math
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ray.exceptions import OutOfMemoryError

from tokconv.errors import SweepError
from tokconv.sweep.judge.epochs import best_by
from tokconv.sweep.record.events import Event, Record, TrialRecord, read_events, read_trials
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.trials.listener import Listener
from tokconv.sweep.trials.tuning import lack_of_memory_explained
from tokconv.training.checkpoint import FORMAT

VALUES = {"model.compressor.output_grid_size": 6}


class Desk:
    """A listener on a real record; the test plays Tune's part."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "events.jsonl"
        self.record = Record(self.path)
        self.finished: list[tuple[str, dict[str, float], str]] = []
        self.broken: dict[str, Exception] = {}
        self.seen: list[int] = []
        self.before_finish: Callable[[], None] = lambda: None
        self.listener = Listener(
            self.record,
            token_grid=24,
            base_grid=4,
            judged_by=("val/fvu", "compression_ratio"),
            finish=self.finish,
            on_event=lambda: self.seen.append(len(self.events())),
        )

    def finish(self, trial: TrialRecord) -> Path:
        self.before_finish()
        self.finished.append((trial.uid, trial.figures, threading.current_thread().name))
        if trial.uid in self.broken:
            raise self.broken[trial.uid]
        return Path("artifacts") / trial.uid

    def events(self, kind: str = "") -> list[Event]:
        return [event for event, _ in read_events(self.path) if event["event"].startswith(kind)]

    def start(self, uid: str = "00000") -> Any:
        windows = {"metric_n_steps": {"val/fvu": {}}, "metric_analysis": {"val/fvu": {}}}
        trial = SimpleNamespace(config={"uid": uid, "values": VALUES}, last_result={}, error_file=None, **windows)
        self.listener.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: Any, epoch: int, **others: Any) -> None:
        figures = {"val/fvu": 1 / max(epoch, 0.5), "compression_ratio": 16.0, **others}
        trial.last_result = {"epoch": epoch, "epochs": 3, "trial_id": "x", "time_total_s": 1.0, **figures}
        self.listener.on_trial_result(0, [], trial, trial.last_result)

    def fail(self, trial: Any, error: str) -> None:
        """End a trial with an error, which Tune writes to a file of the driver."""
        trial.error_file = self.path.with_name("error.txt")
        with trial.error_file.open("a") as file:
            file.write(f"Failure # 1 (occurred at 2026-01-01)\n{error}\n")

    def run(self, uid: str, epochs: int = 3) -> Any:
        trial = self.start(uid)
        for epoch in range(1, epochs + 1):
            self.report(trial, epoch)
        self.listener.on_trial_complete(0, [], trial)
        return trial


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    found = Desk(tmp_path)
    yield found
    found.record.close()


def test_a_complete_trial_is_recorded_from_start_to_artifacts(desk: Desk) -> None:
    trial = desk.run("00003")
    desk.listener.close()
    assert (trial.metric_n_steps, trial.metric_analysis) == ({}, {}), "Tune's memory of it does not stay"
    started, *reported, ended, artifacts = desk.events()
    assert (started["event"], started["trial"], started["values"], started["ratio"]) == (
        "trial_started",
        "00003",
        VALUES,
        16.0,
    )
    assert [event["epoch"] for event in reported] == [1, 2, 3]
    assert {event["event"] for event in reported} == {"trial_reported"}
    assert (ended["event"], ended["state"], ended["reason"]) == ("trial_ended", "complete", "")
    assert (artifacts["event"], artifacts["path"]) == ("trial_artifacts", "artifacts/00003")
    assert desk.seen == [1, 2, 3, 4, 5], "on_event comes after the event is in the record"


def test_only_our_finite_figures_are_recorded(desk: Desk) -> None:
    trial = desk.start()
    others = {"val/gain": -math.inf, "val/swd": math.nan, "train/ae": 2, "critic/wasserstein": -0.5}
    desk.report(trial, 1, **others, checkpoint_path="trials/00000/epoch-0001", config={"val/": 1})
    event = desk.events("trial_reported")[0]
    assert event["figures"] == {
        "val/fvu": 1.0,
        "train/ae": 2.0,
        "critic/wasserstein": -0.5,
        "epoch": 1.0,
        "epochs": 3.0,
        "compression_ratio": 16.0,
    }
    assert desk.record.trials["00000"].checkpoint == "trials/00000/epoch-0001"


def test_results_without_an_epoch_are_not_recorded(desk: Desk) -> None:
    trial = desk.start()
    desk.listener.on_trial_result(0, [], trial, {FAILURE: "diverged", "epoch": 1, "epochs": 3})
    desk.listener.on_trial_result(0, [], trial, {"trial_id": "x", "done": True})
    assert desk.events("trial_reported") == []


def test_every_complete_trial_is_finished_once_in_another_thread(desk: Desk) -> None:
    for number in range(4):
        desk.run(f"{number:05d}")
    desk.run("pruned", epochs=2)
    failed = desk.start("failed")
    desk.listener.on_trial_error(0, [], failed)
    desk.listener.close()
    assert [uid for uid, _, _ in desk.finished] == ["00000", "00001", "00002", "00003"]
    assert all(figures["epoch"] == 3 for _, figures, _ in desk.finished)
    assert all(thread.startswith("finish") for _, _, thread in desk.finished)
    assert [event["trial"] for event in desk.events("trial_artifacts")] == [uid for uid, _, _ in desk.finished]


def test_a_stopped_trial_is_pruned_with_its_epoch(desk: Desk) -> None:
    desk.run("00000", epochs=2)
    desk.listener.close()
    ended = desk.events("trial_ended")[0]
    assert ended["state"] == "pruned"
    assert "epoch 2 of 3" in ended["reason"]
    assert desk.finished == []


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


def test_tune_may_pickle_it(desk: Desk) -> None:
    assert desk.listener.__getstate__() == {}


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


LOST = "The actor died unexpectedly before finishing this task.\n\tclass_name: ImplicitFunc"


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


def test_unreported_epochs_are_read_from_the_next_checkpoint(desk: Desk, tmp_path: Path) -> None:
    """After a driver's death its workers may go on for a moment."""
    history = [{"epoch": epoch, "epochs": 5, "val/fvu": 1 / epoch, "compression_ratio": 16.0} for epoch in range(1, 5)]
    (tmp_path / "state.json").write_text(json.dumps({"format": FORMAT, "history": history}))
    trial = desk.start()
    desk.report(trial, 1)
    desk.report(trial, 4, checkpoint_path=str(tmp_path))
    rows = desk.record.find("00000").history
    assert [row["epoch"] for row in rows] == [1, 2, 3, 4]
    assert [row["val/fvu"] for row in rows] == [1 / epoch for epoch in range(1, 5)]
    desk.report(trial, 8, checkpoint_path=str(tmp_path / "gone"))
    assert [row["epoch"] for row in desk.record.find("00000").history] == [1, 2, 3, 4, 8]


def test_the_start_and_the_best_epochs_are_recorded(desk: Desk) -> None:
    trial = desk.start()
    desk.report(trial, 0)
    for epoch in (1, 2):
        desk.report(trial, epoch)
    best = {"epoch": 0, "epochs": 3, "val/fvu": 0.2, "val/auc_token": 0.9}
    desk.report(trial, 3, best={"val/fvu": best})
    desk.listener.on_trial_complete(0, [], trial)
    [read] = read_trials(desk.path)
    assert [row["epoch"] for row in read.history] == [0, 1, 2, 3]
    assert read.epochs_done == 3
    assert read.best == {"val/fvu": best}
    assert best_by(read, "val/fvu").figures == best
    assert best_by(read, "val/swd") == read


def test_trials_that_ray_ends_for_want_of_memory_end_the_sweep_with_advice() -> None:
    def tune(cause: Exception) -> None:
        with lack_of_memory_explained():
            raise RuntimeError("Caught unexpected exception") from cause

    with pytest.raises(SweepError, match=r"memory ran out \(.*22 GB used.*lower concurrency.*--resume"):
        tune(OutOfMemoryError("Memory on the node was 22 GB used / 23 GB limit\nand more"))
    with pytest.raises(RuntimeError, match="unexpected"):
        tune(ValueError("other"))

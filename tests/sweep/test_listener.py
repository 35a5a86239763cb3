"""What Ray Tune reports ends up in the record, and every complete trial, and no other, is exported once."""

from __future__ import annotations

import json
import math
from pathlib import Path

from support.desks import VALUES, Desk

from tokconv.sweep.judge.epochs import best_by
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.record.log import read_trials
from tokconv.training.checkpoint import FORMAT


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


def test_tune_may_pickle_it(desk: Desk) -> None:
    assert desk.listener.__getstate__() == {}


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

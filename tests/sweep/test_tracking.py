"""MLflow gets every event of a record, as runs with their figures, states and files."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.databases import FRESH
from support.tracked import (
    STATES,
    STATUS,
    artifacts,
    client,
    deliver,
    delivered_points,
    new_record,
    recorded_points,
    run_trial,
    runs,
    start_sweep,
    whole_sweep,
    writer,
)

from tokconv.sweep.tracking import mlflow_writer as tracking
from tokconv.sweep.tracking.mlflow_connection import local_uri, tracking_uri
from tokconv.system.uris import sqlite_uri

pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("tracked_quickly")


def test_importing_the_writer_does_not_import_mlflow() -> None:
    heavy = "{'mlflow', 'torch', 'ray'}"
    code = f"import sys, tokconv.sweep.tracking.mlflow_writer; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(tracking.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_the_uri_comes_from_the_spec_else_the_environment_else_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(None, tmp_path) == local_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(None, tmp_path) == "http://mlflow:5000"
    assert tracking_uri("http://other:5000", tmp_path) == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(None, tmp_path) == local_uri(tmp_path)


def test_nothing_is_printed_on_the_terminal(root: Path, export: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole_sweep(root, export)
    deliver(root, sqlite_uri(root / FRESH))
    assert capfd.readouterr() == ("", "")


def test_the_whole_record_arrives(root: Path, export: Path) -> None:
    record = whole_sweep(root, export)
    delivery = deliver(root)
    assert "all 31 events" in str(delivery)
    reader = client(root)
    assert delivered_points(reader) == recorded_points(record.path)
    trials = runs(reader)
    for uid, state in STATES.items():
        run, recorded = trials[uid], record.trials[uid]
        assert run.info.run_name == f"4x k=2 #{uid}"
        assert run.info.status == STATUS[state]
        assert (run.info.start_time, run.info.end_time) == (recorded.started, recorded.ended)
        assert (run.data.tags["tokconv.state"], run.data.tags["tokconv.reason"]) == (state, recorded.reason)
        assert run.data.tags["tokconv.protocol"] == "2"
        assert run.data.params == {
            "training.n_critic": str(int(uid)),
            "loss.weights.wgan": "0.123457",
            "compression_ratio": "4",
            "output_grid_size": "2",
            "num_tokens": "4",
        }
    note = trials["00001"].data.tags["mlflow.note.content"]
    assert note.startswith("**2 x 2**: 4 tokens instead of 16, 4x fewer.")
    assert "`training.n_critic` = 1" in note
    assert f"State: {STATES['00001']}" in note
    parent = runs(reader, "sweep")["demo-001"]
    assert (parent.info.run_name, parent.info.status) == ("demo-001", "FINISHED")
    assert (
        parent.data.tags.items()
        >= {
            "tokconv.store_fingerprint": "f00d",
            "tokconv.protocol": "2",
            "mlflow.source.git.commit": "c0ffee",
            "tokconv.plan.trials": "4",
            "mlflow.note.content": "| grid |\n| --- |",
        }.items()
    )
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert artifacts(reader, parent) == {"spec.yaml", "report/results.csv"}
    assert {"compressor/model.safetensors", "compressor/config.json"} <= artifacts(reader, trials["00000"])
    assert parent.info.artifact_uri.startswith((root / "mlartifacts" / "demo").as_uri())


def test_two_sweeps_of_one_name_stay_separate(root: Path, tmp_path: Path) -> None:
    for folder in (root, tmp_path / "another machine"):
        record = new_record(folder)
        start_sweep(record)
        run_trial(record, "00000")
        time.sleep(0.01)
        deliver(folder, local_uri(root))
    reader = client(root)
    experiment = reader.get_experiment_by_name("demo").experiment_id
    assert len(reader.search_runs([experiment])) == 4


def test_a_resumed_trial_continues_its_run(root: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    values = {"training.n_critic": 1}
    record.append("trial_started", trial="00001", values=values, ratio=4.0)
    record.append("trial_reported", trial="00001", epoch=1, figures={"val/fvu": 0.5}, checkpoint=None)
    record.append("trial_ended", trial="00001", state="failed", reason="node lost")
    record.append("trial_started", trial="00003", values=values, ratio=4.0)
    record.append("sweep_ended", state="interrupted", champions={}, artifacts=None, summary="")
    deliver(root)
    reader = client(root)
    cut_off = runs(reader)["00003"]
    assert (cut_off.info.status, cut_off.data.tags["tokconv.state"]) == ("KILLED", "interrupted")
    assert runs(reader, "sweep")["demo-001"].info.status == "KILLED"
    start_sweep(record)
    record.append("trial_started", trial="00001", values=values, ratio=4.0)
    deliver(root)
    run = runs(reader)["00001"]
    assert (run.info.status, run.data.tags["tokconv.reason"]) == ("RUNNING", "")
    assert runs(reader, "sweep")["demo-001"].info.status == "RUNNING"
    record.append("trial_reported", trial="00001", epoch=2, figures={"val/fvu": 0.4}, checkpoint=None)
    record.append("trial_ended", trial="00001", state="complete", reason="")
    deliver(root)
    assert runs(reader)["00001"].info.status == "FINISHED"
    assert delivered_points(reader) == recorded_points(record.path)


def test_events_appended_during_delivery_arrive(root: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    following = writer(root)
    for uid in STATES:
        run_trial(record, uid)
        time.sleep(0.1)
    assert following.close(60).complete
    assert delivered_points(client(root)) == recorded_points(record.path)

"""What MLflow refuses is told from an outage at once, and a deleted run comes back whole."""

from __future__ import annotations

import http.server
import os
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.tracked import (
    STATUS,
    artifacts,
    client,
    deliver,
    delivered_points,
    delivering_quickly,
    end_sweep,
    new_record,
    recorded_points,
    run_trial,
    runs,
    start_sweep,
    whole_sweep,
    writer,
)

from tokconv.sweep.tracking.mlflow_connection import DATABASE, connect, local_uri
from tokconv.sweep.tracking.mlflow_refusals import check_database, refusal

mlflow = pytest.importorskip("mlflow")
NEWER = "ffffffffffff"
OLDER = "451aebb31d03"
"""The first migration of MLflow's tables."""


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with delivering_quickly(monkeypatch):
        yield


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    path = tmp_path / "my runs"
    path.mkdir()
    shutil.copy(empty_database, path / DATABASE)
    return path


def refused(root: Path, uri: str | None = None) -> str:
    """Return the reason in both messages of a writer; neither may take as long as an outage would."""
    start_sweep(new_record(root))
    messages: list[str] = []
    begun = time.monotonic()
    sweep = writer(root, uri, messages)
    while not messages and time.monotonic() < begun + 30:
        time.sleep(0.02)
    delivery = sweep.close(30)
    assert time.monotonic() - begun < 20
    assert not delivery.complete
    assert len(messages) == 1
    assert "takes nothing (" in messages[0]
    assert "cannot be reached" not in messages[0] + str(delivery)
    assert str(delivery).endswith("--resume delivers them after that")
    reason = messages[0].removeprefix("MLflow: takes nothing (").rpartition("); the sweep")[0]
    assert reason in str(delivery)
    return reason


class Answers(http.server.BaseHTTPRequestHandler):
    """A server that gives every request the same answer."""

    status, body, kind = 200, b"<html>hello</html>", "text/html"

    def do_GET(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self.send_response(self.status)
        self.send_header("Content-Type", self.kind)
        self.send_header("Content-Length", str(len(self.body)))
        self.end_headers()
        self.wfile.write(self.body)

    do_POST = do_GET  # noqa: N815

    def log_message(self, *args: object) -> None:
        """Print nothing."""


@pytest.fixture
def answering() -> Iterator[Callable[[int], str]]:
    servers = []

    def start(status: int) -> str:
        handler = type("Handler", (Answers,), {"status": status})
        servers.append(http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler))
        threading.Thread(target=servers[-1].serve_forever, daemon=True).start()
        return f"http://me:secret@127.0.0.1:{servers[-1].server_address[1]}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("status", "remedy"),
    [
        (401, "set MLFLOW_TRACKING_USERNAME"),
        (403, "name another one with tracking.experiment=NAME"),
        (404, "no MLflow server answers at"),
        (200, "no MLflow server answers at"),
    ],
)
def test_a_server_that_refuses(root: Path, answering: Callable[[int], str], status: int, remedy: str) -> None:
    reason = refused(root, answering(status))
    assert remedy in reason
    assert "secret" not in reason


@pytest.mark.parametrize("status", [429, 500, 503])
def test_an_overloaded_server_is_an_outage(answering: Callable[[int], str], status: int) -> None:
    uri = answering(status)
    with pytest.raises(mlflow.MlflowException) as caught:
        connect(uri).get_experiment_by_name("demo")
    assert refusal(caught.value, uri, "demo") == ""


def test_a_deleted_experiment_is_restored_by_the_command_that_is_named(root: Path) -> None:
    reader = client(root)
    reader.delete_experiment(reader.create_experiment("demo"))
    reason = refused(root)
    assert reason.startswith("the experiment 'demo' was deleted; restore it: MLFLOW_TRACKING_URI=")
    command = (
        reason.partition("restore it: ")[2].partition("; or name")[0].replace("mlflow ", f"{sys.executable} -m mlflow ")
    )
    subprocess.run(["sh", "-c", command], check=True, capture_output=True, cwd=root, env={**os.environ})
    assert deliver(root).complete


@pytest.mark.parametrize(
    ("uri", "remedy"),
    [
        ("file:///{root}/mlruns", "MLflow keeps runs in databases only"),
        ("{root}/mlruns", "tracking.uri=sqlite:////PATH/mlflow.db"),
        ("gopher://host", "is no address of MLflow"),
        ("mysql+pymysql://127.0.0.1:9/x", "needs a package that is missing"),
        ("postgresql+nodriver://127.0.0.1:9/x", "is no address of MLflow"),
    ],
)
def test_an_address_that_mlflow_cannot_use(root: Path, uri: str, remedy: str) -> None:
    assert remedy in refused(root, uri.format(root=root))


@pytest.mark.parametrize(
    ("version", "remedy"), [(NEWER, "by a newer MLflow than"), (OLDER, "by an older MLflow; back it up, then run: ")]
)
def test_a_database_of_another_schema(root: Path, version: str, remedy: str) -> None:
    with sqlite3.connect(root / DATABASE) as database:
        database.execute("update alembic_version set version_num = ?", (version,))
    database.close()
    assert remedy in refused(root)


def test_a_file_that_is_no_database(root: Path) -> None:
    (root / DATABASE).write_bytes(b"a photograph" * 100)
    assert "is no database; move that file away" in refused(root)


def test_a_read_only_database(root: Path) -> None:
    uri = f"sqlite:///file:{root.parent / 'ro.db'}?mode=ro&uri=true"
    shutil.copy(root / DATABASE, root.parent / "ro.db")
    with pytest.raises(Exception, match="readonly database") as caught:
        connect(uri).create_experiment("demo")
    assert isinstance(caught.value, Exception)
    assert "can only be read" in refusal(caught.value, uri, "demo")
    with pytest.raises(Exception, match="unable to open") as caught:
        check_database("sqlite:////nowhere/mlflow.db")
    assert "cannot be opened" in refusal(caught.value, uri, "demo")
    assert "make it writable" in refusal(PermissionError(13, "Permission denied", "/a/mlflow.db.lock"), uri, "demo")


def test_a_name_that_mlflow_does_not_take(root: Path) -> None:
    with pytest.raises(mlflow.MlflowException) as caught:
        client(root).create_experiment("x" * 501)
    assert "tracking.experiment=NAME" in refusal(caught.value, local_uri(root), "x" * 501)


def resume(root: Path, export: Path) -> Any:
    """Deliver what a resumed sweep without new trials adds, and return a client."""
    record = new_record(root)
    start_sweep(record)
    end_sweep(record, "00000", export, root / "report")
    deliver(root)
    return client(root)


def assert_whole(root: Path, reader: Any) -> None:
    found = runs(reader)
    assert delivered_points(reader) == {uid: recorded_points(root / "events.jsonl")[uid] for uid in found}
    for uid, run in found.items():
        state = run.data.tags["tokconv.state"]
        assert run.info.status == STATUS[state]
        assert run.data.params["training.n_critic"] == str(int(uid))
        assert not [tag for tag in run.data.tags if tag == "tokconv.incomplete"]
        assert run.data.tags["mlflow.parentRunId"] == runs(reader, "sweep")["demo-001"].info.run_id


@pytest.mark.parametrize("forever", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_deleted_run_of_a_trial_comes_back_whole(root: Path, export: Path, forever: bool) -> None:
    whole_sweep(root, export)
    deliver(root)
    before = client(root)
    files = artifacts(before, runs(before)["00000"])
    before.delete_run(runs(before)["00000"].info.run_id)
    if forever:
        subprocess.run(
            [sys.executable, "-m", "mlflow", "gc", "--backend-store-uri", local_uri(root)],
            check=True, capture_output=True, cwd=root, env={**os.environ, "MLFLOW_TRACKING_URI": local_uri(root)},
        )  # fmt: skip
    reader = resume(root, export)
    assert_whole(root, reader)
    assert artifacts(reader, runs(reader)["00000"]) == files
    newest = reader.get_model_version_by_alias("tokconv-demo-2x2", "champion")
    assert newest.run_id == runs(reader)["00000"].info.run_id


def test_a_run_deleted_during_the_sweep_comes_back_whole_and_without_a_message(root: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00003", epochs=2)
    messages: list[str] = []
    sweep = writer(root, messages=messages)
    reader = client(root)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not reader.get_experiment_by_name("demo"):
        time.sleep(0.05)
    while time.monotonic() < deadline and not (found := runs(reader)).get("00003"):
        time.sleep(0.05)
    while time.monotonic() < deadline and runs(reader)["00003"].info.status != "FINISHED":
        time.sleep(0.05)
    reader.delete_run(found["00003"].info.run_id)
    run_trial(record, "00003", epochs=4)
    assert sweep.close(30).complete
    assert messages == []
    assert_whole(root, reader)


def test_a_deleted_sweep_run_gets_its_children_back(root: Path, export: Path) -> None:
    whole_sweep(root, export)
    deliver(root)
    client(root).delete_run(runs(client(root), "sweep")["demo-001"].info.run_id)
    reader = resume(root, export)
    assert_whole(root, reader)
    assert len(runs(reader)) == 4
    assert "spec.yaml" in artifacts(reader, runs(reader, "sweep")["demo-001"])


@pytest.mark.parametrize("what", ["version", "model"])
def test_a_deleted_model_is_registered_again(root: Path, export: Path, what: str) -> None:
    whole_sweep(root, export)
    deliver(root)
    reader, name = client(root), "tokconv-demo-2x2"
    if what == "model":
        reader.delete_registered_model(name)
    else:
        reader.delete_model_version(name, "1")
    reader = resume(root, export)
    champion = reader.get_model_version_by_alias(name, "champion")
    assert champion.run_id == runs(reader)["00000"].info.run_id
    assert champion.tags["tokconv.evidence.fidelity"] == "proven"

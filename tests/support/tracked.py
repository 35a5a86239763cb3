"""A small sweep in a record, and what MLflow holds after its delivery."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record, read_events
from tokconv.sweep.tracking import follower
from tokconv.sweep.tracking.mlflow_connection import ENVIRONMENT, connect, local_uri
from tokconv.sweep.tracking.mlflow_writer import Delivery, MlflowWriter
from tokconv.system.uris import file_uri

FIGURES = ("val/fvu", "val/swd", "val/gain", "train/loss")
STATES = {"00000": "complete", "00001": "pruned", "00002": "failed", "00003": "complete"}
STATUS = {"complete": "FINISHED", "pruned": "FINISHED", "failed": "FAILED"}
EPOCHS = 5
OPENED: list[Record] = []
"""Records to close after each test."""
Points = dict[str, dict[str, set[tuple[int, int, float]]]]


@contextmanager
def delivering_quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Shorten the waits of a delivery within, and close the records at its end."""
    monkeypatch.setattr(follower, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(follower, "FIRST_WAIT", 0.02)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, ENVIRONMENT[name])
    yield
    while OPENED:
        OPENED.pop().close()


def new_record(folder: Path) -> Record:
    OPENED.append(Record(folder / "events.jsonl"))
    return OPENED[-1]


def start_sweep(record: Record, **facts: Any) -> None:
    record.append(
        "sweep_started",
        sweep="demo-001",
        experiment="demo",
        spec={"name": "demo", "search": {"training.n_critic": {"int": [1, 5]}}},
        git_commit="c0ffee",
        store_fingerprint="f00d",
        protocol=2,
        token_grid=4,
        plan={"trials": 4},
        **facts,
    )


def run_trial(record: Record, uid: str, epochs: int = EPOCHS) -> None:
    numbers = random.Random(uid)
    record.append(
        "trial_started", trial=uid, values={"training.n_critic": int(uid), "loss.weights.wgan": 0.123456789}, ratio=4.0
    )
    for epoch in range(1, epochs + 1):
        figures = {name: numbers.uniform(0, 1) for name in FIGURES}
        record.append("trial_reported", trial=uid, epoch=epoch, figures=figures, checkpoint=None)
    reason = "" if STATES[uid] == "complete" else f"because {uid}"
    record.append("trial_ended", trial=uid, state=STATES[uid], reason=reason)


def end_sweep(record: Record, champion: str, export: Path, report: Path, *, run: str = "") -> None:
    report.mkdir(parents=True, exist_ok=True)
    (report / "results.csv").write_text("uid\n")
    record.append(
        "sweep_ended",
        state="finished",
        champions={
            "2": {
                "trial": champion,
                "run": run or champion,
                "export": str(export),
                "meets_targets": True,
                "evidence": "proven",
            }
        },
        evidence={"2": "proven, 3 seeds"},
        artifacts=str(report),
        summary="| grid |\n| --- |",
    )


def whole_sweep(root: Path, export: Path) -> Record:
    record = new_record(root)
    start_sweep(record)
    for uid in STATES:
        run_trial(record, uid)
    record.append("trial_artifacts", trial="00000", path=str(export.parent))
    end_sweep(record, "00000", export, root / "report")
    return record


def writer(root: Path, uri: str | None = None, messages: list[str] | None = None) -> MlflowWriter:
    return MlflowWriter(
        root / "events.jsonl",
        uri=uri or local_uri(root),
        experiment="demo",
        artifact_root=root,
        sweep="demo-001",
        cursor=root / "mlflow.cursor",
        on_message=([] if messages is None else messages).append,
    )


def deliver(root: Path, uri: str | None = None) -> Delivery:
    delivery = writer(root, uri).close(60)
    assert delivery.complete, delivery
    return delivery


def deliver_sweep(directory: SweepDirectory) -> str:
    """Deliver the record of a whole sweep to the SQLite file of its storage; return the file's URI."""
    root = directory.path.parents[1]
    sweep = MlflowWriter(
        directory.events,
        uri=local_uri(root),
        experiment="tiny",
        artifact_root=root,
        sweep=directory.name,
        cursor=directory.cursor,
        on_message=print,
    )
    assert sweep.close(60).complete
    return local_uri(root)


def client(root: Path, uri: str | None = None) -> Any:
    return connect(uri or local_uri(root))


def runs(mlflow_client: Any, kind: str = "trial") -> dict[str, Any]:
    """Return the runs of a kind by uid, each once."""
    experiment = mlflow_client.get_experiment_by_name("demo").experiment_id
    found = mlflow_client.search_runs([experiment], f"tags.`tokconv.kind` = '{kind}'")
    key = "tokconv.sweep_uid" if kind == "sweep" else "tokconv.trial_uid"
    by_uid = {run.data.tags[key].split("/")[-1]: run for run in found}
    assert len(by_uid) == len(found)
    return by_uid


def recorded_points(path: Path) -> Points:
    """Return what MLflow must hold: uid -> metric -> (step, time, value)."""
    points: Points = {}
    for event, _ in read_events(path):
        if event["event"] == "trial_started":
            metrics = points.setdefault(event["trial"], {"compression_ratio": set()})
            if not metrics["compression_ratio"]:
                metrics["compression_ratio"].add((0, event["time"], event["ratio"]))
        elif event["event"] == "trial_reported":
            for name, value in event["figures"].items():
                point = (event["epoch"], event["time"], float(f"{value:.6g}"))
                points[event["trial"]].setdefault(name, set()).add(point)
    return points


def delivered_points(mlflow_client: Any) -> Points:
    points: Points = {}
    for uid, run in runs(mlflow_client).items():
        points[uid] = {}
        for name in run.data.metrics:
            history = mlflow_client.get_metric_history(run.info.run_id, name)
            points[uid][name] = {(point.step, point.timestamp, point.value) for point in history}
            assert len(points[uid][name]) == len(history)
    return points


def artifacts(mlflow_client: Any, run: Any, folder: str | None = None) -> set[str]:
    found = mlflow_client.list_artifacts(run.info.run_id, folder)
    inner = (artifacts(mlflow_client, run, item.path) for item in found if item.is_dir)
    return {item.path for item in found if not item.is_dir}.union(*inner)


def runs_of_first_sweep(root: Path) -> list[Any]:
    reader = client(root)
    first = next(read_events(root / "events.jsonl"))[0]["time"]
    experiment = reader.get_experiment_by_name("demo").experiment_id
    return list(reader.search_runs([experiment], f"tags.`tokconv.sweep_started` = '{first}'"))


class Flaky:
    """A client whose calls fail at random, before or after they have taken effect."""

    def __init__(self, inner: Any, numbers: random.Random) -> None:
        self._inner, self._numbers, self.failures = inner, numbers, 0

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            when = self._numbers.random()
            result = None if when < 0.05 else getattr(self._inner, name)(*args, **kwargs)
            if when < 0.1:
                self.failures += 1
                raise ConnectionError("lost")
            return result

        return call


class Server:
    """A real `mlflow server` on its own port; tables and artifacts are below `root` unless they are given."""

    def __init__(self, root: Path, port: int, *, tables: str = "", artifacts: str = "") -> None:
        self.uri = f"http://127.0.0.1:{port}"
        words = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
        tables, artifacts = tables or local_uri(root), artifacts or file_uri(root / "served")
        places = ["--backend-store-uri", tables, "--artifacts-destination", artifacts]
        self._process = subprocess.Popen(
            [*words, *places],
            env={**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )

    def kill(self) -> None:
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


class Proxy:
    """A slow server in front of another one that answers some requests with 500, before or after they took effect."""

    def __init__(self, to: str, port: int, *, share: float, delay: float) -> None:
        self.uri, self.failures = f"http://127.0.0.1:{port}", 0
        numbers, outer = random.Random(0), self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self) -> None:
                time.sleep(delay)
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                when = numbers.random()
                status, content, kind = 500, b"out of order", "text/plain"
                if when >= share / 2:
                    request = urllib.request.Request(to + self.path, body or None, method=self.command)
                    request.add_header("Content-Type", self.headers.get("Content-Type", "application/json"))
                    try:
                        with urllib.request.urlopen(request, timeout=30) as answer:
                            found = answer.status, answer.read(), answer.headers.get("Content-Type", "")
                    except urllib.error.HTTPError as error:
                        found = error.code, error.read(), error.headers.get("Content-Type", "")
                    except urllib.error.URLError:  # the server is not up yet
                        found = status, content, kind
                    if when >= share:
                        status, content, kind = found
                outer.failures += status == 500
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815 (as http.server has it)

            def log_message(self, *args: object) -> None:
                """Print nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

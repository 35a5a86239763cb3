"""MLflow gets every event once, whatever fails, and the sweep never waits for it."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
from support.ports import free_port
from support.tracked import (
    STATES,
    STATUS,
    Flaky,
    Proxy,
    Server,
    client,
    deliver,
    delivered_points,
    end_sweep,
    new_record,
    recorded_points,
    run_trial,
    runs,
    start_sweep,
    whole_sweep,
    writer,
)

from tokconv.sweep.tracking import follower, mlflow_runs
from tokconv.sweep.tracking.mlflow_connection import DATABASE
from tokconv.system.uris import sqlite_uri

pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("tracked_quickly")


@pytest.mark.parametrize("cursor", [None, '{"place": "', "[1]", '{"place": "elsewhere", "offset": 900}'])
def test_delivering_all_again_adds_nothing(root: Path, export: Path, cursor: str | None) -> None:
    """As after a crash between a delivery and the write of its cursor, or with a torn cursor."""
    record = whole_sweep(root, export)
    deliver(root)
    if cursor is None:
        (root / "mlflow.cursor").unlink()
    else:
        (root / "mlflow.cursor").write_text(cursor)
    deliver(root)
    reader = client(root)
    assert delivered_points(reader) == recorded_points(record.path)
    assert len(runs(reader, "sweep")) == 1
    assert len(reader.search_model_versions("name = 'tokconv-demo-2x2'")) == 1
    assert {uid: run.info.status for uid, run in runs(reader).items()} == {u: STATUS[s] for u, s in STATES.items()}


def test_a_cursor_of_a_deleted_database_is_ignored(root: Path, export: Path, empty_database: Path) -> None:
    record = whole_sweep(root, export)
    deliver(root)
    (root / DATABASE).unlink()
    # A new name, since MLflow keeps connections to the old file.
    (root / "new.db").write_bytes(empty_database.read_bytes())
    uri = sqlite_uri(root / "new.db")
    deliver(root, uri)
    assert delivered_points(client(root, uri)) == recorded_points(record.path)


@pytest.mark.parametrize("moved_by", [-1, 1, 10_000])
def test_a_cursor_within_a_line_delivers_everything_again(root: Path, export: Path, moved_by: int) -> None:
    """As after the record was edited, or restored from a backup."""
    delivered: list[object] = []

    class Willing:
        def open(self) -> str:
            return "here"

        def deliver(self, events: Sequence[object]) -> None:
            delivered.extend(events)

    def follow() -> follower.Delivery:
        delivered.clear()
        return follower.Follower(record.path, Willing(), cursor=root / "c", name="it", on_message=print).close(20)

    record = whole_sweep(root, export)
    assert follow().complete
    every = list(delivered)
    assert follow().complete
    assert not delivered
    cursor = json.loads((root / "c").read_text())
    (root / "c").write_text(json.dumps({**cursor, "offset": cursor["offset"] + moved_by}))
    assert follow().complete
    assert delivered == every


def test_a_server_that_is_down_delays_nothing_and_loses_nothing(root: Path, export: Path) -> None:
    messages: list[str] = []
    record = new_record(root)
    start_sweep(record)
    away = writer(root, f"http://user:secret@127.0.0.1:{free_port()}", messages)
    begun = time.monotonic()
    for uid in STATES:
        run_trial(record, uid)
    assert time.monotonic() - begun < 2
    while not messages:  # The first attempt imports MLflow.
        time.sleep(0.05)
    begun = time.monotonic()
    delivery = away.close(0.5)
    assert time.monotonic() - begun < 2
    assert not delivery.complete
    assert delivery.delivered == 0
    assert "29 of 29 events not delivered" in str(delivery)
    assert str(record.path) in str(delivery)
    assert "--resume" in str(delivery)
    assert len(messages) == 1
    assert "cannot be reached" in messages[0]
    assert "secret" not in messages[0] + str(delivery)
    deliver(root)
    assert delivered_points(client(root)) == recorded_points(record.path)


def test_after_random_failures_the_figures_are_exact(root: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = client(root)
    flaky = Flaky(reader, random.Random(0))
    monkeypatch.setattr(mlflow_runs, "connect", lambda uri: flaky)
    monkeypatch.setattr(follower, "BATCH_EVENTS", 3)
    record = whole_sweep(root, export)
    deliver(root)
    assert flaky.failures > 0
    assert delivered_points(reader) == recorded_points(record.path)
    assert {uid: run.info.status for uid, run in runs(reader).items()} == {u: STATUS[s] for u, s in STATES.items()}
    assert len(reader.search_model_versions("name = 'tokconv-demo-2x2'")) == 1


@pytest.mark.slow
def test_a_slow_server_that_answers_500_gets_everything_once(root: Path, export: Path) -> None:
    server = Server(root, free_port())
    proxy = Proxy(server.uri, free_port(), share=0.1, delay=0.02)
    record = new_record(root)
    messages: list[str] = []
    try:
        start_sweep(record)
        following = writer(root, proxy.uri, messages)
        for number in range(4):
            run_trial(record, f"{number:05d}")
        record.append("trial_artifacts", trial="00000", path=str(export.parent))
        end_sweep(record, "00000", export, root / "report")
        delivery = following.close(150)
        assert delivery.complete, delivery
        assert proxy.failures > 3
        reader = client(root, server.uri)
        assert delivered_points(reader) == recorded_points(record.path)
        assert reader.get_model_version_by_alias("tokconv-demo-2x2", "champion").version
        assert len(messages) == 1
    finally:
        proxy.close()
        server.kill()


def test_files_removed_meanwhile_are_named_and_delay_nothing(root: Path, tmp_path: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00000")
    record.append("trial_artifacts", trial="00000", path=str(tmp_path / "gone"))
    end_sweep(record, "00000", tmp_path / "gone", root / "report")
    deliver(root)
    run = runs(client(root))["00000"]
    assert run.data.tags["tokconv.missing"] == str(tmp_path / "gone")
    assert run.info.status == "FINISHED"


def test_events_that_are_not_delivered_always_have_a_reason(root: Path) -> None:
    class Silent:
        def open(self) -> str:
            time.sleep(5)
            return ""

        def deliver(self, events: object) -> None: ...

    record = new_record(root)
    start_sweep(record)
    silent = follower.Follower(record.path, Silent(), cursor=root / "c", name="MLflow", on_message=print)
    assert "1 of 1 events not delivered (no answer within 0.2 s);" in str(silent.close(0.2))


def test_without_events_mlflow_is_not_contacted(root: Path) -> None:
    assert writer(root, "http://127.0.0.1:1").close(5).complete

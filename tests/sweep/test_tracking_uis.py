"""Two MLflow UIs and a sweep use one SQLite file at the same time."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.artefacts import write_export
from support.ports import answers, free_port, until
from support.tracked import (
    STATES,
    Server,
    client,
    delivered_points,
    end_sweep,
    new_record,
    recorded_points,
    run_trial,
    start_sweep,
    writer,
)

from tokconv.sweep.tracking.mlflow_connection import local_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of MLflow and SQLAlchemy, in their own threads
]


def test_two_uis_read_what_a_sweep_writes(tmp_path: Path) -> None:
    export, record = write_export(tmp_path / "artefact" / "compressor"), new_record(tmp_path)
    start_sweep(record)
    following = writer(tmp_path)
    run_trial(record, "00000")
    until((tmp_path / "mlflow.cursor").exists)
    servers = [Server(tmp_path, free_port()) for _ in range(2)]
    try:
        for server in servers:
            until(lambda server=server: answers(f"{server.uri}/health"))
        for uid in list(STATES)[1:]:
            run_trial(record, uid)
            for server in servers:  # somebody reads while the sweep writes
                client(tmp_path, server.uri).search_experiments()
        record.append("trial_artifacts", trial="00000", path=str(export.parent))
        end_sweep(record, "00000", export, tmp_path / "report")
        delivery = following.close(60)
        assert delivery.complete, delivery
        expected = recorded_points(tmp_path / "events.jsonl")
        for server in servers:
            assert delivered_points(client(tmp_path, server.uri)) == expected
        assert delivered_points(client(tmp_path)) == expected
    finally:
        for server in servers:
            server.kill()


def test_two_sweeps_create_the_tables_of_one_database(tmp_path: Path) -> None:
    processes = []
    for name in ("one", "two"):
        root = tmp_path / name
        root.mkdir()
        record = new_record(root)
        start_sweep(record)
        run_trial(record, "00000")
        program = (
            f"from support.tracked import *; messages = []; at = Path({str(root)!r}); uri = {local_uri(tmp_path)!r}"
        )
        program += "; print(writer(at, uri, messages).close(60).message, messages)"
        time.sleep(0.01)  # the time of its start is part of a sweep's identity
        command = [sys.executable, "-c", program]
        here = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        processes.append(
            subprocess.Popen(command, env=here, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        )
    for process in processes:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0, printed
        assert re.search(r"all \d+ events delivered.* \[\]\n$", printed), printed
    found = client(tmp_path).search_runs(["1"], "tags.`tokconv.kind` = 'trial'")
    assert len(found) == len({run.data.tags["tokconv.sweep_started"] for run in found}) == 2

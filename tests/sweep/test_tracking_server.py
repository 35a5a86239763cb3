"""An MLflow server of a team: tables in PostgreSQL, artifacts on S3-compatible storage, several sweeps at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support.artefacts import write_export
from support.objects import client_environment, object_server
from support.ports import free_port, until
from support.postgres import postgres
from support.tracked import (
    STATES,
    STATUS,
    Points,
    Server,
    artifacts,
    client,
    end_sweep,
    new_record,
    recorded_points,
    run_trial,
    start_sweep,
)

from tokconv.sweep.tracking.mlflow_writer import MlflowWriter

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of MLflow and SQLAlchemy, in their own threads
]


def test_simultaneous_sweeps_arrive_exactly_once_although_the_server_dies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    export = write_export(tmp_path / "artefact" / "compressor")
    for name, value in client_environment().items():
        monkeypatch.setenv(name, value)
    with object_server(tmp_path / "objects") as objects, postgres() as tables:
        port = free_port()
        place = {"tables": tables, "artifacts": "s3://tokconv/mlflow"}
        server = Server(tmp_path, port, **place)
        try:
            # Only the server knows the bucket: drivers upload their artifacts to the server.
            for name in client_environment():
                monkeypatch.delenv(name)
            sweeps = {name: _Sweep(tmp_path / name, name, server.uri) for name in ("demo-001", "demo-002")}
            for sweep in sweeps.values():
                sweep.start()
            until(lambda: all(sweep.cursor.exists() for sweep in sweeps.values()))
            server.kill()
            for sweep in sweeps.values():
                sweep.run("00001", "00002")
            for name, value in client_environment().items():
                monkeypatch.setenv(name, value)
            server = Server(tmp_path, port, **place)
            for sweep in sweeps.values():
                sweep.finish(export)
            for name, sweep in sweeps.items():
                delivery = sweep.writer.close(120)
                assert delivery.complete, f"{name}: {delivery}"
                assert len(sweep.messages) == 1, "of the first failure"
            reader = client(tmp_path, server.uri)
            experiment = reader.get_experiment_by_name("demo").experiment_id
            trials = _trials(reader, experiment)
            assert set(trials) == {(name, uid) for name in sweeps for uid in STATES}
            for (name, uid), run in trials.items():
                assert _points(reader, run) == recorded_points(sweeps[name].events)[uid]
                assert run.info.status == STATUS[STATES[uid]]
                assert run.info.artifact_uri.startswith("mlflow-artifacts:")
            for name in sweeps:
                uploaded = artifacts(reader, trials[name, "00000"])
                assert {"compressor/model.safetensors", "compressor/config.json"} <= uploaded
            versions = reader.search_model_versions("name = 'tokconv-demo-2x2'")
            assert sorted(version.run_id for version in versions) == sorted(
                trials[name, "00000"].info.run_id for name in sweeps
            )
            assert reader.get_model_version_by_alias("tokconv-demo-2x2", "champion").version
            weights = (export / "model.safetensors").read_bytes()
            stored = (objects.files / "mlflow").glob("*/*/artifacts/compressor/model.safetensors")
            assert [path.read_bytes() for path in stored] == [weights] * 2
            # A driver that lost its cursor delivers everything again.
            for sweep in sweeps.values():
                sweep.cursor.unlink()
                assert sweep.again().close(120).complete
            assert {key: _points(reader, run) for key, run in _trials(reader, experiment).items()} == {
                (name, uid): recorded_points(sweep.events)[uid] for name, sweep in sweeps.items() for uid in STATES
            }
            assert len(reader.search_model_versions("name = 'tokconv-demo-2x2'")) == 2
            assert capfd.readouterr() == ("", "")
        finally:
            server.kill()


class _Sweep:
    """The driver's side: a record that grows and the writer that follows it."""

    def __init__(self, root: Path, name: str, uri: str) -> None:
        root.mkdir()
        self.root, self.name, self.uri = root, name, uri
        self.events, self.cursor = root / "events.jsonl", root / "mlflow.cursor"
        self.record = new_record(root)
        self.messages: list[str] = []

    def start(self) -> None:
        start_sweep(self.record)
        self.writer = self.again()
        self.run("00000")

    def again(self) -> MlflowWriter:
        return MlflowWriter(
            self.events,
            uri=self.uri,
            experiment="demo",
            artifact_root=self.root,
            sweep=self.name,
            cursor=self.cursor,
            on_message=self.messages.append,
        )

    def run(self, *uids: str) -> None:
        for uid in uids:
            run_trial(self.record, uid)

    def finish(self, export: Path) -> None:
        self.run("00003")
        self.record.append("trial_artifacts", trial="00000", path=str(export.parent))
        end_sweep(self.record, "00000", export, self.root / "report")
        self.record.close()


def _trials(reader: Any, experiment: str) -> dict[tuple[str, str], Any]:
    """Return the runs of trials by sweep and uid, each once."""
    found = reader.search_runs([experiment], "tags.`tokconv.kind` = 'trial'")
    by_uid = {tuple(run.data.tags["tokconv.trial_uid"].split("/")): run for run in found}
    assert len(by_uid) == len(found)
    return by_uid


def _points(reader: Any, run: Any) -> dict[str, set[tuple[int, int, float]]]:
    points: Points = {"": {}}
    for name in run.data.metrics:
        history = reader.get_metric_history(run.info.run_id, name)
        points[""][name] = {(point.step, point.timestamp, point.value) for point in history}
        assert len(points[""][name]) == len(history)
    return points[""]

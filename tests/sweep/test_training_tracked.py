"""A run of `tokconv train` in MLflow: what it holds, that a resumed training continues it, and that nothing waits."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.ports import free_port
from support.tracked import artifacts, client
from support.untracked import TRACK

from tokconv import __version__
from tokconv.cli import train_tracking
from tokconv.cli.main import main
from tokconv.config.keys import flatten, to_dict
from tokconv.config.overrides import compose
from tokconv.evaluation.curve import write_curve
from tokconv.sweep.tracking import mlflow_connection
from tokconv.sweep.tracking.mlflow_connection import create_database, local_uri
from tokconv.sweep.tracking.mlflow_training import EXPERIMENT

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def state(epochs: int) -> dict[str, Any]:
    """Return what a checkpoint says after so many epochs."""
    rows = [{"epoch": n, "epochs": 3, "val/fvu": 0.5 / (n + 1), "val/swd": 0.1} for n in range(epochs + 1)]
    config = to_dict(compose(["data=digits"]))
    return {"config": config, "history": rows, "baselines": {}, "store_fingerprint": "f00d", "protocol": 3}


def left(root: Path, epochs: int) -> tuple[Path, dict[str, Any]]:
    """Return the directory of a run, with its curve, and the state of its newest checkpoint."""
    directory, found = root / "runs" / "train" / "train-001", state(epochs)
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "config.json").write_text("{}")
    write_curve(found["history"], {}, directory)
    return directory, found


def only_run(root: Path) -> Any:
    reader = client(root / "runs")
    (run,) = reader.search_runs([reader.get_experiment_by_name(EXPERIMENT).experiment_id])
    return run


def test_a_resumed_training_continues_its_run(tmp_path: Path) -> None:
    said = TRACK(*left(tmp_path, 1), "interrupted", {0: 1000, 1: 2000}, "halfway")
    assert said.startswith("MLflow:     run train-001 of the experiment 'train'"), said
    first = only_run(tmp_path)
    assert first.info.status == "KILLED"
    assert first.info.start_time == 1000
    directory, found = left(tmp_path, 3)
    assert TRACK(directory, found, "finished", {2: 3000, 3: 4000}, "done")
    run = only_run(tmp_path)
    assert (run.info.run_id, run.info.status, run.info.run_name) == (first.info.run_id, "FINISHED", "train-001")
    history = client(tmp_path / "runs").get_metric_history(run.info.run_id, "val/fvu")
    assert [(point.step, point.timestamp) for point in history] == [(0, 1000), (1, 2000), (2, 3000), (3, 4000)]
    assert run.data.params.keys() == flatten(found["config"]).keys()
    assert run.data.params["training.epochs"] == str(found["config"]["training"]["epochs"])
    tags = {"tokconv.kind": "train", "tokconv.version": __version__, "tokconv.store_fingerprint": "f00d"}
    assert tags.items() <= run.data.tags.items()
    assert run.data.tags["mlflow.note.content"] == "done"
    assert {"curve.csv", "curve.png", "config.json"} == artifacts(client(tmp_path / "runs"), run)
    assert TRACK(directory, found, "finished", {}) == ""


def test_a_run_that_was_deleted_there_is_written_anew(tmp_path: Path) -> None:
    TRACK(*left(tmp_path, 1), "interrupted", {})
    before = only_run(tmp_path).info.run_id
    client(tmp_path / "runs").delete_run(before)
    TRACK(*left(tmp_path, 3), "finished", {})
    assert only_run(tmp_path).info.run_id != before
    assert len(client(tmp_path / "runs").get_metric_history(only_run(tmp_path).info.run_id, "val/fvu")) == 4


def test_a_server_that_is_away_costs_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{free_port()}")
    said = TRACK(*left(tmp_path, 1), "finished", {})
    assert said.startswith("MLflow: cannot be reached (")
    assert said.endswith("the run is complete without it, and tokconv train --resume writes it there")
    assert "\n" not in said


def test_a_server_that_never_answers_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tracking, "SERVER_SECONDS", 0.0)
    # It takes connections; one that refused them could be told of before the wait ends.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert "MLflow: no answer within 0 s" in TRACK(*left(tmp_path, 1), "finished", {})


def test_without_mlflow_nothing_happens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(train_tracking, "find_spec", lambda name: None)
    assert TRACK(*left(tmp_path, 1), "finished", {}) == ""
    assert not (tmp_path / "runs" / "mlflow.db").exists()


def test_a_new_database_is_whole_or_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Dying:
        def __init__(self, uri: str) -> None:
            mlflow_connection.path_of(uri).write_bytes(b"half of it")

        def search_experiments(self, max_results: int) -> None:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(mlflow_connection, "connect", Dying)
        with pytest.raises(KeyboardInterrupt):
            create_database(tmp_path / "mlflow.db")
    assert not list(tmp_path.iterdir())
    create_database(tmp_path / "mlflow.db")
    assert mlflow_connection.connect(local_uri(tmp_path)).search_experiments() is not None
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"]


def test_training_does_not_import_mlflow() -> None:
    code = "import sys, tokconv.cli.train; sys.exit('mlflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.slow
def test_the_command_tracks_unless_it_is_told_not_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tokconv.cli.train.track", TRACK)
    data, small = ["data=digits", "data.subset=48", "data.num_workers=0"], ["model.compressor.hidden_dim=8"]
    command = ["train", *data, *small, "training.epochs=1"]
    assert main([*command, "--no-mlflow", "--name", "alone"]) == 0
    assert not Path("runs/mlflow.db").exists()
    assert main(command) == 0
    assert capsys.readouterr().out.splitlines()[-1].startswith("MLflow:     run train-001")
    assert only_run(tmp_path).data.metrics["val/fvu"] > 0

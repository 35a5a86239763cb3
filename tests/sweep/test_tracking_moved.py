"""MLflow's artifacts after a project was moved or copied: found at the new place, and nothing is written to the old."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.artefacts import write_export
from support.tracked import artifacts, client, delivering_quickly, new_record, run_trial, runs, start_sweep

from tokconv.errors import SweepError
from tokconv.sweep.tracking.mlflow_connection import DATABASE, local_uri
from tokconv.sweep.tracking.mlflow_moved import repair_default, repair_places
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter
from tokconv.system.uris import file_uri, path_of

pytest.importorskip("mlflow")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with delivering_quickly(monkeypatch):
        yield


def sweep_on(root: Path, uid: str, *, whole_paths: bool = False) -> None:
    """Add a trial with its files and the end of the sweep to the record in `root`."""
    sweep = root / "sweeps" / "demo-001"
    record = new_record(sweep)
    start_sweep(record)
    run_trial(record, uid)
    at = sweep if whole_paths else Path()
    write_export(sweep / "artifacts" / uid / "compressor")
    record.append("trial_artifacts", trial=uid, path=str(at / "artifacts" / uid))
    write_export(sweep / "champions" / "grid-02")
    (sweep / "report").mkdir(exist_ok=True)
    (sweep / "report" / "results.csv").write_text("uid\n")
    champion = {"trial": uid, "export": str(at / "champions" / "grid-02"), "meets_targets": True, "evidence": "proven"}
    record.append("sweep_ended", state="finished", champions={"2": champion}, artifacts=str(at / "report"))


def deliver(root: Path) -> list[str]:
    messages: list[str] = []
    sweep, uri = root / "sweeps" / "demo-001", local_uri(root)
    cursor = sweep / "mlflow.cursor"
    delivery = MlflowWriter(
        sweep / "events.jsonl",
        uri=uri,
        experiment="demo",
        artifact_root=root,
        sweep="demo-001",
        cursor=cursor,
        on_message=messages.append,
    ).close(60)
    assert delivery.complete, delivery
    return messages


def content(folder: Path) -> dict[str, str]:
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def check_places(root: Path, uids: set[str]) -> None:
    reader = client(root)
    found = runs(reader)
    assert found.keys() == uids
    for run in (*found.values(), *runs(reader, "sweep").values()):
        assert path_of(run.info.artifact_uri).is_relative_to(root)
        assert artifacts(reader, run) & {"compressor/model.safetensors", "report/results.csv"}
    version = reader.get_model_version_by_alias("tokconv-demo-2x2", "champion")
    assert version.run_id == found[max(uids)].info.run_id
    assert path_of(version.source).is_relative_to(root)
    assert (path_of(reader.get_model_version_download_uri(version.name, version.version)) / "MLmodel").is_file()


def test_a_sweep_goes_on_in_mlflow_after_a_move_and_in_a_copy(tmp_path: Path) -> None:
    old, moved, copy = (tmp_path / name / "runs" for name in ("old project", "moved%20project", "copy"))
    sweep_on(old, "00000", whole_paths=True)
    assert deliver(old) == []
    old.parent.rename(moved.parent)
    # Delivered anew: also what the record names by whole paths is taken from where it is now.
    (moved / "sweeps" / "demo-001" / "mlflow.cursor").unlink()
    sweep_on(moved, "00003")
    assert deliver(moved) == [
        f"MLflow: artifacts that were in {old / 'mlartifacts'} are now looked for in {moved / 'mlartifacts'}"
    ]
    assert not old.parent.exists()
    check_places(moved, {"00000", "00003"})

    shutil.copytree(moved.parent, copy.parent)
    before = content(moved)
    repaired = repair_default(copy)
    assert repaired is not None
    assert str(moved) in repaired
    assert repair_default(copy) is None
    (copy / "sweeps" / "demo-001" / "mlflow.cursor").unlink()
    deliver(copy)
    check_places(copy, {"00000", "00003"})
    assert content(moved) == before


def database(folder: Path, *locations: str) -> Path:
    folder.mkdir(parents=True)
    with closing(sqlite3.connect(folder / DATABASE)) as tables, tables:
        tables.execute("CREATE TABLE experiments (artifact_location TEXT)")
        tables.executemany("INSERT INTO experiments VALUES (?)", [(location,) for location in locations])
    return folder / DATABASE


def test_a_database_that_several_folders_share_stays_as_it_is(tmp_path: Path) -> None:
    other = tmp_path / "other" / "mlartifacts"
    own = database(tmp_path / "own", file_uri(other / "demo"), "mlflow-artifacts:/1", "s3://bucket/mlartifacts/demo")
    (other / "demo").mkdir(parents=True)
    assert repair_default(tmp_path / "own") is None
    # Outside of its own folder, a database is changed only for artifacts that are there.
    assert repair_places(own, tmp_path / "third") is None
    assert repair_places(tmp_path / "nowhere.db", tmp_path) is None
    (tmp_path / "third" / "mlartifacts" / "demo").mkdir(parents=True)
    assert repair_places(own, tmp_path / "third") is not None


def test_a_copy_without_its_artifacts_does_not_write_to_the_original(tmp_path: Path) -> None:
    original = database(tmp_path / "original", file_uri(tmp_path / "original" / "mlartifacts" / "demo"))
    (tmp_path / "original" / "mlartifacts" / "demo").mkdir(parents=True)
    copied = tmp_path / "copy" / DATABASE
    copied.parent.mkdir()
    shutil.copy(original, copied)
    assert repair_default(copied.parent) is not None
    with closing(sqlite3.connect(copied)) as tables:
        locations = tables.execute("SELECT artifact_location FROM experiments").fetchall()
    assert locations == [(file_uri(tmp_path / "copy" / "mlartifacts" / "demo"),)]


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    (tmp_path / DATABASE).write_text("no database, but long enough to be taken for one" * 40)
    with pytest.raises(SweepError, match=r"mlflow.db: .*cannot be brought up to date \(file is not a database\)"):
        repair_default(tmp_path)

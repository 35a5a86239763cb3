"""Weights & Biases: its offline files hold what the record of the sweep holds."""

from __future__ import annotations

import json
import struct
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.records import write_sweep
from support.sweeping import spec

from tokconv.errors import MissingExtraError, SpecError
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.log import Record
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.tracking.wandb_writer import DELETED, WandbWriter

BLOCK = 32768

pytestmark = pytest.mark.filterwarnings("ignore")  # of W&B's own threads and protobuf


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb", exc_type=ImportError)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")


def records_of(path: Path) -> Iterator[Any]:
    """Yield the protobuf records of a .wandb file: LevelDB's log format after a header of 7 bytes."""
    from wandb.proto import wandb_internal_pb2

    data, place, parts = path.read_bytes(), 7, b""
    while place + 7 <= len(data):
        left = BLOCK - place % BLOCK
        if left < 7:
            place += left
            continue
        _, size, kind = struct.unpack("<IHB", data[place : place + 7])
        parts += data[place + 7 : place + 7 + size]
        place += 7 + size
        if kind in (1, 4):
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def whole(path: Path) -> list[Any]:
    """Return the records of a file once all are written: W&B's own process writes them, and outlives the run."""
    deadline = time.monotonic() + 20
    while True:
        records = list(records_of(path))
        if "exit" in {record.WhichOneof("record_type") for record in records} or time.monotonic() > deadline:
            return records
        time.sleep(0.1)


def read_back(root: Path) -> dict[str, dict[str, Any]]:
    """Return id, group, kind, config, and figures by step, for each run name."""
    found: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "wandb").glob("offline-run-*/*.wandb")):
        history: list[dict[str, Any]] = []
        run: Any = None
        for record in whole(path):
            kind = record.WhichOneof("record_type")
            if kind == "run":
                run = run or record.run
            elif kind == "history":
                items = record.history.item
                history.append({i.key or ".".join(i.nested_key): json.loads(i.value_json) for i in items})
        config = {update.key: json.loads(update.value_json) for update in run.config.update}
        found[run.display_name] = {
            "id": run.run_id,
            "group": run.run_group,
            "kind": run.job_type,
            "config": config,
            "history": history,
        }
    return found


def test_every_trial_is_a_run_with_its_values_and_figures(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path, trials=4)
    writer = WandbWriter(directory.events, project="tiny", sweep=directory.name, root=tmp_path)
    assert writer.close(120).complete
    runs, view = read_back(tmp_path), read_sweep(directory)
    assert len(runs) == 4 + 6
    for trial in (*view.trials.values(), *view.confirmations.values()):
        [run] = [run for name, run in runs.items() if name.endswith(f"#{trial.uid}")]
        assert run["group"] == directory.name
        assert run["kind"] == ("trial" if trial.confirms is None else "confirm")
        assert run["config"].items() >= {**trial.values, "compression_ratio": trial.ratio}.items()
        assert [row["_step"] for row in run["history"]] == [row["epoch"] for row in trial.history]
        for row, known in zip(run["history"], trial.history, strict=True):
            assert row["val/fvu"] == pytest.approx(known["val/fvu"], rel=1e-5)


def test_a_resumed_sweep_adds_to_its_runs(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path, trials=2, ended=False)
    assert WandbWriter(directory.events, project="tiny", sweep=directory.name, root=tmp_path).close(60).complete
    before = {name: run["id"] for name, run in read_back(tmp_path).items()}
    record = Record(directory.events)
    record.append("trial_reported", trial="00001", epoch=3, figures={"val/fvu": 0.01}, checkpoint=None)
    record.append("trial_ended", trial="00001", state="complete", reason="")
    record.close()
    assert WandbWriter(directory.events, project="tiny", sweep=directory.name, root=tmp_path).close(60).complete
    after = read_back(tmp_path)
    assert {name: run["id"] for name, run in after.items()} == before
    assert [row["_step"] for name, run in after.items() if "#00001" in name for row in run["history"]][-1] == 3


def test_a_missing_package_is_reported_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SpecError, match=r"tracking\.wandb: got 'yes'"):
        parse_spec(spec(tmp_path, tracking={"wandb": "yes"}))
    # The way in which Python marks a module that cannot be imported.
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'tokconv\[wandb\]'"):
        run_sweep(parse_spec(spec(tmp_path, tracking={"wandb": True})))
    assert list(tmp_path.iterdir()) == []


def test_weights_and_biases_refuses_a_missing_key_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import wandb

    wandb.teardown()  # it remembers the mode
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    directory, messages = write_sweep(tmp_path, trials=2), list[str]()
    sweep = WandbWriter(directory.events, project="tiny", sweep="s", root=tmp_path, on_message=messages.append)
    try:
        assert "wandb login" in str(sweep.close(60))
    finally:
        wandb.teardown()
    assert len(messages) == 1


def test_a_run_deleted_at_weights_and_biases_is_opened_under_another_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import wandb

    directory = write_sweep(tmp_path, trials=2)
    real, ids, logged = wandb.init, list[str](), list[int]()

    def init(**settings: Any) -> Any:
        """Answer for the first id of every run as W&B's server does, which is not here."""
        if settings["id"] not in ids and len(ids) % 2 == 0:
            ids.append(settings["id"])
            raise wandb.errors.CommError(f"run x was {DELETED}; try a new run name (<Response [409]>)")
        ids.append(settings["id"])
        run = real(**settings)
        log = run.log
        monkeypatch.setattr(run, "log", lambda figures, step: (logged.append(step), log(figures, step=step)))
        return run

    monkeypatch.setattr(wandb, "init", init)
    sweep = WandbWriter(directory.events, project="tiny", sweep="s", root=tmp_path)
    assert sweep.close(60).complete
    assert len(set(ids)) == len(ids)
    assert {1, 2, 3, 4} <= set(logged)

"""A sweep whose storage is a real S3-compatible server is resumed on another machine; unusable storage is refused."""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from pathlib import Path

import pytest
import torch
from support.objects import SECRET, URL, ObjectServer, client_environment
from support.one_ray import one_ray
from support.sweeping import DIM, TOKEN_GRID, Driver, shared_store, spec, write_spec

import tokconv
from tokconv.cli.main import main
from tokconv.errors import StorageError
from tokconv.sweep.record.lease import LEASE
from tokconv.sweep.record.log import Record
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec
from tokconv.system.storage import CACHE

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, Ray, MLflow and SQLAlchemy, in their own threads
EPOCHS, HANGS_AFTER = 5, 2
STEPS = 3
"""Training steps in an epoch."""


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize(("runner", "trials"), [("inline", 2), ("torch_trainer", 1)])
def test_a_killed_sweep_is_resumed_on_another_machine(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runner: str, trials: int
) -> None:
    """The driver is killed while its last trial hangs.

    A mirror that lacks reports at the kill: see test_epochs_that_the_mirror_missed_are_read_from_checkpoints.
    """
    uids = [f"{number:05d}" for number in range(trials)]
    path = write_spec(
        tmp_path,
        trials=trials,
        storage=URL,
        resources={"runner": runner},
        base=[f"training.epochs={EPOCHS}", "data.store=s3://tokconv/store"],
    )
    there = server.files / "runs" / "sweeps" / "tiny-001"
    # Encoding to a URL: see tests/store/test_store_cache.py. Each machine fetches the tokens; their baselines it has.
    store = shared_store()
    shutil.copytree(store.path, server.files / "store", ignore=shutil.ignore_patterns(store.derived_dir.name))
    for machine in ("one", "two"):
        shutil.copytree(store.derived_dir, tmp_path / machine / "stores" / store.fingerprint / store.derived_dir.name)
    grids = (4, 8)[:trials]
    driver = Driver(path, tmp_path, "--allow-unproven")
    # Then the mirror has all that the driver will ever write, and a kill interrupts no upload.
    reports = (trials - 1) * (EPOCHS + 1) + HANGS_AFTER + 1
    driver.killed_when(
        lambda: _log(there).count(b'"trial_reported"') == reports, TOKCONV_HANG=f"{grids[-1]}:{HANGS_AFTER * STEPS}"
    )
    shutil.rmtree(tmp_path / "one")
    monkeypatch.setenv(CACHE, str(tmp_path / "two"))
    with one_ray(**client_environment(), **{CACHE: str(tmp_path / "two")}):
        driver.resume()
    here = tmp_path / "two" / "sweeps" / "s3-tokconv-runs" / "sweeps" / "tiny-001"
    assert (here / "events.jsonl").read_bytes() == _log(there)
    record = Record(here / "events.jsonl")
    record.close()
    assert [trial.state for trial in record.trials.values()] == ["complete"] * trials
    reported: dict[str, list[int]] = {}
    started: Counter[str] = Counter()
    for line in _log(there).splitlines():
        event = json.loads(line)
        if event["event"] == "trial_reported":
            reported.setdefault(event["trial"], []).append(event["epoch"])
        elif event["event"] == "trial_started":
            started[event["trial"]] += 1
    # A finished trial was not run again; the last one went on from its checkpoint and reported no epoch twice.
    assert started == {**dict.fromkeys(uids, 1), uids[-1]: 2}
    assert reported == {uid: list(range(EPOCHS + 1)) for uid in uids}
    for uid, trial in record.trials.items():
        assert trial.checkpoint == f"trials/{uid}/epoch-{EPOCHS:04d}"
        assert [entry.name for entry in (there / "trials" / uid).iterdir()] == [f"epoch-{EPOCHS:04d}"]
        assert (there / "artifacts" / uid / "reconstruction.png").exists()
    for name in ("spec.yaml", "report/results.csv", "report/champions.json", "report/pareto.png"):
        assert (there / name).read_bytes() == (here / name).read_bytes()
    for grid in grids:
        compressor = tokconv.load_compressor(there, grid=grid, purpose="fidelity")
        assert compressor(torch.zeros(1, TOKEN_GRID**2, DIM)).shape == (1, grid**2, DIM)
    assert json.loads((there / LEASE).read_text())["ended"]


@pytest.mark.parametrize(
    ("storage", "message"),
    [
        ("s3://key:s3cr3t@bucket/runs", "storage: the s3 URL contains credentials"),
        ("s3://tokconv/runs", "AWS_ENDPOINT_URL"),
        ("gs://bucket/runs", "pip install gcsfs"),
    ],
)
def test_unusable_storage_is_reported_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], storage: str, message: str
) -> None:
    """No server runs in this test."""
    for name, value in client_environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv(CACHE, str(tmp_path / "node"))
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", str(write_spec(tmp_path, storage=storage))]) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1
    assert message in said.err
    assert "s3cr3t" not in said.out + said.err
    assert SECRET not in said.out + said.err
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["spec.yaml"]


def test_a_shared_path_as_a_url_is_refused_if_it_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match=r"storage: file:///.*cannot be written"):
        run_sweep(parse_spec(spec(tmp_path, storage=f"file://{tmp_path}/file/runs")))


def _log(there: Path) -> bytes:
    while True:
        try:
            return b"".join(path.read_bytes() for path in sorted((there / "events.jsonl").glob("[0-9]*")))
        except FileNotFoundError:  # The server is replacing an object at this moment.
            time.sleep(0.05)

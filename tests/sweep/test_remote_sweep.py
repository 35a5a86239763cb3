"""A sweep whose storage is a real S3-compatible server: another machine can resume it, but only one at a time."""

from __future__ import annotations

import errno
import json
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from support.objects import SECRET, ObjectServer, client_environment, client_of_a_server
from support.one_ray import one_ray
from support.sweeping import DIM, TOKEN_GRID, Driver, shared_store, spec, write_spec

import tokconv
from tokconv.cli.main import main
from tokconv.errors import StorageError, SweepError
from tokconv.sweep.judge.snapshot import all_sweeps, find_sweep
from tokconv.sweep.record import lease as leases
from tokconv.sweep.record.events import Record
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.lease import LEASE, Lease
from tokconv.sweep.record.remote import mirrored, open_root
from tokconv.sweep.record.remote_checkpoints import RemoteCheckpoints
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec
from tokconv.system.mirror import Mirror, fetch_log
from tokconv.system.storage import CACHE, Remote

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, Ray, MLflow and SQLAlchemy, in their own threads
URL = "s3://tokconv/runs"
EPOCHS, HANGS_AFTER = 5, 2
STEPS = 3
"""Training steps in an epoch."""


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    with client_of_a_server(monkeypatch, tmp_path / "objects", tmp_path / "one") as running:
        yield running


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


def test_a_mirror_follows_its_directory(server: ObjectServer, tmp_path: Path) -> None:
    work, remote = tmp_path / "work", Remote(f"{URL}/mirrored")
    (work / "report").mkdir(parents=True)
    lines = [b"%d\n" % number for number in range(300_000)]
    (work / "log").write_bytes(b"".join(lines) + b"torn")
    (work / "report" / "a").write_text("one")
    (work / "position").write_text("17")

    def ship() -> None:
        files = lambda: [f"report/{path.name}" for path in (work / "report").iterdir()]  # noqa: E731
        with Mirror(work, remote, files=files, logs=["log"], positions=["position"], digests=True):
            pass

    ship()
    assert fetch_log(remote, "log") == b"".join(lines)
    assert set(remote.files()) == {"log/00000", "log/00001", "position", "report/a", "report/a.sha256"}
    with (work / "log").open("ab") as log:
        log.write(b" no more\n")
    (work / "report" / "a").unlink()
    (work / "report" / "b").write_text("two")
    ship()
    assert fetch_log(remote, "log") == (work / "log").read_bytes()
    assert {name for name in remote.files() if name.startswith("report")} == {"report/b", "report/b.sha256"}


def test_files_arrive_before_the_log_lines_that_mention_them(tmp_path: Path) -> None:
    work, remote = tmp_path / "work", Remote(f"file://{tmp_path}/there")
    work.mkdir()
    (work / "picture").write_text("a picture")
    (work / "log").write_text("the picture is drawn\n")
    seen: list[bool] = []

    def files() -> list[str]:
        seen.append((remote / "log" / "00000").read() is None)
        return ["picture"]

    with Mirror(work, remote, files=files, logs=["log"]):
        pass
    assert seen[0]
    assert fetch_log(remote, "log") == b"the picture is drawn\n"


def test_a_server_that_is_away_holds_nothing_up_and_misses_nothing(server: ObjectServer, tmp_path: Path) -> None:
    (tmp_path / "log").write_bytes(b"1\n")
    said: list[str] = []
    server.stop()
    mirror = Mirror(tmp_path, Remote(f"{URL}/away"), files=lambda: [], logs=["log"], on_message=said.append)
    with pytest.raises(StorageError, match=f"not everything arrived .*kept in {tmp_path}, and --resume uploads it"):
        mirror.close(8)
    assert len(said) == 1
    server.start()
    with Mirror(tmp_path, Remote(f"{URL}/away"), files=lambda: [], logs=["log"]):
        pass
    assert fetch_log(Remote(f"{URL}/away"), "log") == b"1\n"


def test_two_drivers_do_not_work_on_one_sweep(
    server: ObjectServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.2)
    monkeypatch.setattr(leases, "WATCH_SECONDS", 1.5)
    place = Remote(f"{URL}/sweeps/tiny-001")
    with Lease(place) as first:
        with pytest.raises(SweepError, match=f"process {os.getpid()} on .* is running this sweep"), Lease(place):
            pass
        assert first.held
    with Lease(place):
        pass
    # The lease of a silent driver on another machine is taken over after a time of watching.
    (place / LEASE).write(json.dumps({"id": "x", "host": "elsewhere", "pid": 1, "beat": 7}).encode())
    with Lease(place) as taken:
        assert taken.held
        assert "a driver on elsewhere has not signed off" in capsys.readouterr().out
        # If the silent driver comes back, it finds out and stops.
        (place / LEASE).write(json.dumps({"id": "x", "host": "elsewhere", "pid": 1, "beat": 8}).encode())
        with pytest.raises(KeyboardInterrupt):
            _live(20)
        assert not taken.held
    assert json.loads((place / LEASE).read() or b"")["id"] == "x"


def test_a_lease_outlives_a_moment_without_room_for_temporary_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(leases, "BEAT_SECONDS", 0.05)
    refused, write = threading.Event(), Remote.write

    def full(self: Remote, content: bytes) -> None:
        refused.set()
        raise OSError(errno.ENOSPC, "No space left on device")

    def beats() -> int:
        return int(json.loads((tmp_path / LEASE).read_bytes())["beat"])

    with Lease(Remote(f"file://{tmp_path}")) as held:
        monkeypatch.setattr(Remote, "write", full)
        assert refused.wait(10)
        before = beats()
        monkeypatch.setattr(Remote, "write", write)
        deadline = time.monotonic() + 10
        while beats() == before and time.monotonic() < deadline:
            time.sleep(0.02)
        assert held.held
        assert beats() > before


def test_checkpoints_without_their_last_file_do_not_count(server: ObjectServer, tmp_path: Path) -> None:
    for epoch in (1, 2):
        folder = tmp_path / f"epoch-{epoch:04d}"
        folder.mkdir()
        for name in ("optimizers.pt", "state.json", "weights.safetensors"):
            (folder / name).write_text(f"{name} {epoch}")
    checkpoints = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch")
    assert checkpoints.latest() is None
    assert checkpoints.keep(tmp_path / "epoch-0001") == f"{URL}/trials/00000/epoch-0001"
    (Remote(URL) / "trials/00000/epoch-0002/weights.safetensors").upload(tmp_path / "epoch-0002/weights.safetensors")
    newest = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch").latest()
    assert newest is not None
    assert sorted(path.read_text() for path in newest.iterdir()) == sorted(
        f"{name} 1" for name in ("optimizers.pt", "state.json", "weights.safetensors")
    )
    checkpoints.keep(tmp_path / "epoch-0002")
    assert {name.split("/")[0] for name in Remote(f"{URL}/trials/00000").files()} == {"epoch-0002"}


def test_remote_checkpoints_are_ordered_by_epoch_not_by_name(server: ObjectServer, tmp_path: Path) -> None:
    checkpoints = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch")
    for epoch in (9999, 10000):
        folder = tmp_path / f"epoch-{epoch}"
        folder.mkdir()
        (folder / "state.json").write_text("{}")
        (Remote(URL) / "trials/00000" / folder.name / "state.json").upload(folder / "state.json")
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.name == "epoch-10000"
    checkpoints.keep(tmp_path / "epoch-10000")
    assert {name.split("/")[0] for name in Remote(f"{URL}/trials/00000").files()} == {"epoch-10000"}


def test_every_run_of_a_spec_has_its_own_remote_directory(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_root(URL)
    first = root.new("tiny")
    assert (first.name, first.trials) == ("tiny-001", f"{URL}/sweeps/tiny-001/trials")
    with pytest.raises(SweepError, match="no run of 'tiny' to resume"):
        root.newest("tiny")
    (Remote(URL) / "sweeps/tiny-001/spec.yaml").write(b"name: tiny\n")
    monkeypatch.setenv(CACHE, str(tmp_path / "two"))
    assert open_root(URL).new("tiny").name == "tiny-002"
    assert open_root(URL).new("tin").name == "tin-001"


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepDirectory:
    """Return a sweep at a URL that needs no server, with one running trial, as its first driver left it."""
    monkeypatch.setenv(CACHE, str(tmp_path / "one"))
    directory = open_root(f"file://{tmp_path}/shared").new("tiny")
    directory.spec.write_text("name: tiny\n")
    record = Record(directory.events)
    directory.journal.write_text('{"op": 1}\n')
    record.append("trial_started", trial="00000", values={}, grid=2, ratio=4.0)
    record.append("trial_reported", trial="00000", epoch=1, figures={"val/fvu": 0.3, "epoch": 1}, checkpoint=None)
    with mirrored(directory, record):
        pass
    record.close()
    return directory


def test_a_sweep_at_a_url_is_read_without_disturbing_its_driver(
    shared: SweepDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/shared"
    assert find_sweep("tiny", url) == find_sweep("tiny-001", url) == shared
    assert all_sweeps(url) == [shared]
    with pytest.raises(SweepError, match=r"other: no such sweep in file://.*there are: tiny-001$"):
        find_sweep("other", url)
    record = Record(shared.events)
    with shared.lock(), mirrored(shared, record):
        assert find_sweep("tiny", url) == shared
        assert capsys.readouterr().err == ""
        # Another machine has no other sign of the driver than its lease.
        monkeypatch.setenv(CACHE, str(tmp_path / "two"))
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        other = find_sweep("tiny", url)
        assert other.path.is_relative_to(tmp_path / "two")
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "has not signed off" in printed.err
        assert "downloaded from" in printed.err
    record.close()


def test_a_sweep_goes_on_from_its_newest_state(
    shared: SweepDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/shared"
    first = shared.events.read_bytes()
    # This machine has more than its mirror, which was away when the driver died, and keeps it.
    ahead = first + b'{"event":"sweep_ended","time":1}\n'
    shared.events.write_bytes(ahead)
    assert open_root(url).newest("tiny").events.read_bytes() == ahead
    # Another machine goes on from the mirror.
    monkeypatch.setenv(CACHE, str(tmp_path / "two"))
    other = open_root(url).newest("tiny")
    assert other.path.is_relative_to(tmp_path / "two")
    assert (other.events.read_bytes(), other.spec.read_text()) == (first, "name: tiny\n")
    assert other.journal.read_bytes() == shared.journal.read_bytes()
    record = Record(other.events)
    with mirrored(other, record):
        record.append("trial_ended", trial="00000", state="complete")
    record.close()
    # The first machine comes back: what only it had is no longer part of the sweep.
    monkeypatch.setenv(CACHE, str(tmp_path / "one"))
    late = Record(shared.events)
    with pytest.raises(SweepError, match="another driver went on with it"), mirrored(shared, late):
        pass
    late.close()
    assert open_root(url).newest("tiny").events.read_bytes() == other.events.read_bytes()


def test_epochs_that_the_mirror_missed_are_read_from_checkpoints(shared: SweepDirectory) -> None:
    assert shared.remote is not None
    rows = [{"epoch": epoch, "epochs": 4, "val/fvu": 1 / epoch} for epoch in (1, 2, 3)]
    (shared.remote / "trials/00000/epoch-0003/state.json").write(json.dumps({"history": rows}).encode())
    (shared.remote / "trials/00001/epoch-0002/state.json").write(b"{}")
    record = Record(shared.events)
    with mirrored(shared, record):
        assert [row["epoch"] for row in record.trials["00000"].history] == [1, 2, 3]
        assert record.trials["00000"].figures["val/fvu"] == 1 / 3
        assert record.trials["00000"].checkpoint == "trials/00000/epoch-0003"
        assert shared.place("trials/00000/epoch-0003") == f"{shared.remote}/trials/00000/epoch-0003"
    record.close()
    assert (shared.remote / "trials").files().keys() == {"00000/epoch-0003/state.json"}


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


def _live(seconds: float) -> None:
    """Wait as a driver does: a thread interrupts it between two steps, not within one."""
    for _ in range(round(10 * seconds)):
        time.sleep(0.1)


def _log(there: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted((there / "events.jsonl").glob("[0-9]*")))

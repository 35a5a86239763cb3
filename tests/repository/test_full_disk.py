"""A full disk gives one sentence and loses nothing written before; with room again, the same command continues.

The disks are small file systems in memory. The tests are skipped if this process may not mount them.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.networks import PUBLISHED
from support.one_ray import one_ray
from support.sweeping import DATA as SHARED
from support.sweeping import Driver, events, shared_store, write_spec

import tokconv
from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.encoding.pipeline import encode
from tokconv.store.reader import TokenStore
from tokconv.sweep.record.log import read_trials
from tokconv.training.checkpoint import load

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

DATA = ["data.subset=64", "data.num_workers=0"]
TINY = [
    *PUBLISHED,
    *("model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8", "model.critic.hidden_dim=8"),
    *("model.compressor.num_layers=1", "training.batch_size=16", "loss.weights.wgan=0"),
]


IMPATIENT = """
import sys
import tokconv.sweep.run
from tokconv.cli.main import main
tokconv.sweep.run.DRAIN_SECONDS = 3
sys.exit(main())
"""
"""The command, which does not wait a minute for room for MLflow's database."""


class Disk:
    """A file system of a few MB in memory."""

    def __init__(self, place: Path) -> None:
        self.place, self._filler = place, place / "filler"

    def resize(self, megabytes: int) -> None:
        options = f"remount,size={megabytes}m"
        subprocess.run(["mount", "-o", options, str(self.place)], check=True)

    def fill(self) -> None:
        with self._filler.open("wb", buffering=0) as file:
            while True:
                try:
                    file.write(bytes(2**16))
                except OSError:
                    break

    def free(self) -> None:
        self._filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=3m", "tmpfs", str(place)], capture_output=True, text=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"cannot mount a file system: {mounted.stderr.strip()}")
    yield Disk(place)
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1]), "OMP_NUM_THREADS": "1"}
    program = [sys.executable, "-c", IMPATIENT, *arguments]
    return subprocess.Popen(
        program, cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def test_an_encode_goes_on_where_the_disk_was_full(disk: Disk, tmp_path: Path) -> None:
    arguments = ["encode", *DATA, f"data.store={disk.place}/store"]
    full = command(*arguments, cwd=tmp_path)
    printed = full.communicate()[0]
    assert full.returncode == 2, printed
    assert "cannot be written or read (No space left on device)" in printed
    assert "Traceback" not in printed
    assert not list((disk.place / "store").glob(".*.tmp")), "what was half written takes no room"
    disk.resize(64)
    assert main(arguments) == 0
    elsewhere = encode(compose([*DATA, f"data.store={tmp_path}/other"]))
    assert TokenStore.open(disk.place / "store", verify=True).fingerprint == elsewhere.fingerprint


def test_a_checkpoint_survives_the_one_that_does_not_fit(disk: Disk, tmp_path: Path) -> None:
    disk.resize(64)
    arguments = ["train", "--no-mlflow", *SHARED, *TINY, f"data.store={shared_store().path}", "training.epochs=400"]
    training = command(*arguments, cwd=disk.place)
    checkpoints = disk.place / "runs" / "train" / "train-001" / "checkpoints"
    _wait(training, lambda: len(list(checkpoints.glob("epoch-*"))) > 0)
    disk.fill()
    printed = training.communicate(timeout=300)[0]
    assert training.returncode == 2, printed
    assert "No space left on device" in printed
    assert "Traceback" not in printed
    [kept] = checkpoints.glob("epoch-*")
    epoch = load(kept).state["history"][-1]["epoch"]
    assert kept.name == f"epoch-{epoch:04d}"
    disk.free()
    again = command("train", "--resume", cwd=disk.place)
    _wait(again, lambda: any(path.name > kept.name for path in checkpoints.glob("epoch-*")))
    again.kill()
    again.communicate()


@pytest.mark.filterwarnings("ignore")  # of Ray, MLflow and SQLAlchemy, in their own threads
def test_a_sweep_stops_with_a_sentence_and_goes_on(
    disk: Disk, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    disk.resize(96)
    spec = write_spec(tmp_path, trials=2, base=["training.epochs=24"], storage=str(disk.place / "runs"))
    with one_ray():
        sweep = command("sweep", str(spec), "--allow-unproven", cwd=tmp_path)
    directory = disk.place / "runs" / "sweeps" / "tiny-001"

    def complete() -> int:
        return sum(event["event"] == "trial_ended" for event in events(directory))

    _wait(sweep, lambda: complete() >= 1)
    disk.fill()
    printed = sweep.communicate(timeout=400)[0]
    assert sweep.returncode not in (0, None), printed
    assert "No space left on device" in printed
    done = {trial.uid for trial in read_trials(directory / "events.jsonl") if trial.state == "complete"}
    assert done
    disk.free()
    with one_ray():
        Driver(spec, tmp_path, "--allow-unproven").resume()
    trials = read_trials(directory / "events.jsonl")
    assert {trial.state for trial in trials} == {"complete"}, [(t.uid, t.reason) for t in trials if t.state == "failed"]
    starts = [event["trial"] for event in events(directory) if event["event"] == "trial_started"]
    assert all(starts.count(uid) == 1 for uid in done)
    assert re.search(r"MLflow: all \d+ events delivered", capsys.readouterr().out)


def _wait(process: subprocess.Popen[str], reached) -> None:  # type: ignore[no-untyped-def]
    deadline = time.monotonic() + 120
    while not reached():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.1)

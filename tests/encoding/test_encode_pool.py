"""Several encoders write the store of one process, bit for bit, even if some of them die."""

from __future__ import annotations

import configparser
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from support.towers import write_tower

from tokconv.cli.main import main
from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.encoders import Encoders
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.encoding.pool import MAX_DEATHS, ShardWorker, encode_with_pool
from tokconv.errors import ClusterError, MissingExtraError
from tokconv.store.format import INDEX, shard_name

NUM_IMAGES = 90
DAMAGED = (1, 40, 41, 42, 43, 89)


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A folder of images, some damaged, including one whole shard; relative paths, as a user would give them."""
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)
    monkeypatch.chdir(tmp_path)
    write_tower(Path("tower"))
    Path("photos").mkdir()
    for number in range(NUM_IMAGES):
        file = Path("photos") / f"{number:02d}.png"
        Image.effect_noise((20, 24), 20 + number).save(file)
        if number in DAMAGED:
            file.write_bytes(b"")
    data = DataConfig(source="folder", root="photos", store="store", encode_batch_size=3, num_workers=1)
    return Config(model=ModelConfig(clip=ClipConfig(model_name="./tower")), data=data)


def _encoder_processes() -> list[int]:
    """Return the processes of the pool that this process started."""
    parents, found = {}, []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal():
            continue
        try:
            parents[int(entry.name)] = int((entry / "stat").read_text().rsplit(")", 1)[1].split()[1])
            if (entry / "cmdline").read_text().startswith("ray::MapWorker"):
                found.append(int(entry.name))
        except (FileNotFoundError, ProcessLookupError):
            continue

    def is_ours(pid: int) -> bool:
        while pid not in (0, os.getpid()):
            pid = parents.get(pid, 0)
        return pid != 0

    return [pid for pid in found if is_ours(pid)]


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds the encoder to kill in /proc")
@pytest.mark.filterwarnings("ignore")  # of Ray, in its own threads
def test_a_pool_writes_the_store_of_one_process(config: Config) -> None:
    """One of two encoders is killed; then a pool that may grow encodes a lost shard again."""
    expected = encode(config, device="cpu")
    config.data.store = "other"
    seen: list[EncodeProgress] = []
    killed: list[int] = []

    def progress(step: EncodeProgress) -> None:
        seen.append(step)
        if not killed:
            killed.append(_encoder_processes()[0])
            os.kill(killed[0], signal.SIGKILL)

    store = encode_with_pool(config, Encoders(least=2, most=2, gpus=0), progress)
    assert killed
    assert (seen[-1].done, seen[-1].skipped) == (NUM_IMAGES, len(DAMAGED))
    assert [step.done for step in seen] == sorted(step.done for step in seen)
    assert store.fingerprint == expected.fingerprint
    assert [image.item for image in store.skipped] == list(DAMAGED)
    _same_files(expected.path, store.path)

    before = {path: path.stat().st_mtime_ns for path in store.path.glob("*.safetensors")}
    lost = store.path / shard_name(3)
    for path in (lost, store.path / INDEX):
        path.unlink()
    seen.clear()
    again = encode_with_pool(config, Encoders(least=1, most=2, gpus=0), progress)
    assert [step.done for step in seen] == [NUM_IMAGES]
    assert again.fingerprint == expected.fingerprint
    _same_files(expected.path, store.path)
    assert {path for path, time in before.items() if path.stat().st_mtime_ns != time} == {lost}
    # An existing store needs no pool, so Ray is not started.
    assert encode_with_pool(config, Encoders(least=10**6, most=10**6)).fingerprint == expected.fingerprint


def _same_files(ours: Path, theirs: Path) -> None:
    names = sorted(path.name for path in ours.iterdir())
    assert names == sorted(path.name for path in theirs.iterdir())
    names.remove("derived")  # no part of a store
    assert all((ours / name).read_bytes() == (theirs / name).read_bytes() for name in names)


def test_a_shard_that_kills_its_encoders_ends_the_encode(config: Config) -> None:
    encode(config, device="cpu")
    worker = ShardWorker(config, open_job(config), torch.device("cpu"))
    assert worker.report(0) == {"shard": 0, "images": 4, "skipped": 1, "kind": "", "error": ""}
    (Path("store") / shard_name(0)).unlink()
    for number in range(MAX_DEATHS):
        (Path("store") / f".shard-00000-{number}.tmp").touch()
    row = worker.report(0)
    assert row["kind"] == "DataError"
    assert re.match(r"5 encoders died on shard 0 of .*; every finished shard is kept", row["error"])


def test_a_store_that_an_encoder_cannot_see_is_reported(config: Config) -> None:
    row = ShardWorker(config, open_job(config), torch.device("cpu")).report(0)
    assert row["kind"] == "StoreError"
    assert "store is missing on" in row["error"]
    assert "file system that all of them see" in row["error"]


def test_a_pool_needs_the_extra_of_ray_alone(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pool imports what tokconv[ray] installs; without it, the message names that extra and not the sweep's."""
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    required = setup["options.extras_require"]["ray"].split()
    assert [line.split(">")[0] for line in required] == ["ray[data,default]"]
    for module in ("ray", "pyarrow", "pandas"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            with pytest.raises(MissingExtraError, match=rf"{module} is not installed; .*'tokconv\[ray\]'"):
                encode_with_pool(config, Encoders())
    assert not any(name.startswith("tokconv.sweep") for name in _modules_of_a_pool())


def _modules_of_a_pool() -> list[str]:
    code = "import sys, tokconv.encoding.pool; print(*sys.modules)"
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()


def test_a_cluster_that_does_not_answer_is_reported_as_such(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_answer(**_: object) -> None:
        raise ConnectionError

    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "init", no_answer)
    with pytest.raises(ClusterError, match=r"RAY_ADDRESS=127\.0\.0\.1:9: no Ray cluster answers there"):
        encode_with_pool(config, Encoders())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--encoders", "none"], "--encoders: got 'none'; write a number, as in 4, or the fewest and the most"),
        (["--gpus-per-encoder", "0.5"], "--gpus-per-encoder: goes with --encoders"),
        (["--cpus-per-encoder", "2"], "--cpus-per-encoder: goes with --encoders"),
        (["--encoders", "2", "--cpus-per-encoder", "0"], "--cpus-per-encoder: got 0; must be at least 1"),
        (["--images", "5"], "--images: goes with --plan"),
        (["--images-per-second", "5"], "--images-per-second: goes with --plan"),
        (["--encoders", "2", "--device", "cpu"], "--device: not with --encoders"),
    ],
)
def test_contradicting_options_are_refused(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["encode", "data.subset=4", *arguments]) == 2
    assert message in capsys.readouterr().err


def test_ray_is_imported_only_for_a_pool(tmp_path: Path) -> None:
    code = (
        "import sys; from tokconv.cli.main import main\n"
        "few = ['data.subset=4', 'data.num_workers=0', 'data.store=store']\n"
        "assert main(['encode', *few, '--plan', '--encoders', '8', '--images-per-second', '9']) == 0\n"
        "assert main(['encode', *few]) == 0\n"
        "assert 'ray' not in sys.modules"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path, env=environment)


def test_a_cluster_of_other_versions_is_reported_with_them(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def other_version(**_: object) -> None:
        raise RuntimeError("Version mismatch: The cluster was started with:\n    Ray: 2.9.0\n    Python: 3.11.1")

    ray = pytest.importorskip("ray")
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    monkeypatch.setattr(ray, "init", other_version)
    with pytest.raises(ClusterError, match=r"Version mismatch: The cluster was started with: Ray: 2\.9\.0"):
        encode_with_pool(config, Encoders())

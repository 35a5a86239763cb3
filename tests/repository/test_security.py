"""Hostile files and secrets: no pickle is run, no absurd size is read, no secret is written anywhere."""

from __future__ import annotations

import json
import os
import pickle
import re
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from support.stores import write_store
from support.sweeping import write_spec
from support.towers import write_tower

import tokconv
from tokconv.config.overrides import compose
from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import TokconvError
from tokconv.exports.artefact import export, load_compressor
from tokconv.exports.dynamic.ragged import load_ragged
from tokconv.store.format import shard_name
from tokconv.store.reader import TokenStore
from tokconv.training import checkpoint
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

SOURCES = sorted(Path(tokconv.__file__).parent.rglob("*.py"))
FORBIDDEN = {
    r"\bpickle\.loads?\(": "runs what it reads",
    r"\bcloudpickle\b": "runs what it reads",
    r"\btorch\.load\((?![^)]*weights_only=True)": "unpickles",
    r"\byaml\.(unsafe_|full_)?load\(": "makes objects of tags",
    r"allow_pickle=True": "unpickles",
    r"trust_remote_code=True": "runs code of a model's folder",
    r"(?<![.\w])(eval|exec)\(": "runs text",
    r"shell=True": "runs text",
    r"get_pickled_error|pickled_error_file": "unpickles what lies in a shared storage",
    r"0\.0\.0\.0": "listens to everybody",
}


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(SOURCES[0].parents[0])))
def test_the_source_calls_nothing_that_runs_what_it_reads(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for pattern, what in FORBIDDEN.items():
        assert re.search(pattern, text) is None, f"{pattern}: {what}"


class Bomb:
    """An object that makes a directory when it is unpickled."""

    def __init__(self, crater: Path) -> None:
        self.crater = crater

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        return os.mkdir, (str(self.crater),)


@pytest.fixture
def crater(tmp_path: Path) -> Path:
    return tmp_path / "crater"


@pytest.fixture
def exported(tmp_path: Path) -> Path:
    tiny = ["model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8", "model.critic.hidden_dim=8"]
    config = compose([*tiny, "model.compressor.output_grid_size=2", "training.epochs=1", "training.batch_size=8"])
    run_trial(config, write_store(tmp_path / "store", num_classes=0), LocalRuntime(tmp_path / "run", device="cpu"))
    return export(tmp_path / "run" / "checkpoints" / "epoch-0001", tmp_path / "exported")


def pickled(path: Path, crater: Path) -> None:
    """Replace a file by a pickle, a plain one or one in torch's format."""
    path.write_bytes(pickle.dumps({"state": Bomb(crater)}, protocol=2))


def torch_pickled(path: Path, crater: Path) -> None:
    torch.save({"state": Bomb(crater)}, path)


@pytest.mark.parametrize("plant", [pickled, torch_pickled])
def test_planted_pickles_are_refused_and_not_run(
    tmp_path: Path, exported: Path, crater: Path, plant: Callable[[Path, Path], None]
) -> None:
    saved, store = tmp_path / "run" / "checkpoints" / "epoch-0001", tmp_path / "store"
    tower = write_tower(tmp_path / "tower")
    for file, read in (
        (saved / "optimizers.pt", lambda: checkpoint.load(saved)),
        (saved / "weights.safetensors", lambda: checkpoint.load(saved)),
        (exported / "model.safetensors", lambda: load_compressor(exported)),
        (exported / "config.json", lambda: load_compressor(exported)),
        (store / shard_name(0), lambda: TokenStore.open(store)),
        (store / "index.json", lambda: TokenStore.open(store)),
        (tmp_path / "ragged.safetensors", lambda: load_ragged(tmp_path / "ragged.safetensors")),
        (tower / "model.safetensors", lambda: VisionTower(ClipConfig(model_name=str(tower)), "cpu")),
        (tower / "config.json", lambda: VisionTower(ClipConfig(model_name=str(tower)), "cpu")),
    ):
        before = file.read_bytes() if file.exists() else None
        plant(file, crater)
        with pytest.raises(TokconvError):
            read()
        assert not crater.exists(), file
        if before is not None:
            file.write_bytes(before)


def test_a_tower_with_only_pickles_is_refused(tmp_path: Path, crater: Path) -> None:
    tower = write_tower(tmp_path / "tower")
    (tower / "model.safetensors").unlink()
    torch_pickled(tower / "pytorch_model.bin", crater)
    with pytest.raises(TokconvError, match="a pickle, which could run any code"):
        VisionTower(ClipConfig(model_name=str(tower)), "cpu")
    assert not crater.exists()


@pytest.mark.parametrize("length", [2**63, 2**40, 2**25])
def test_absurd_sizes_are_refused_before_memory_is_taken(tmp_path: Path, exported: Path, length: int) -> None:
    (exported / "model.safetensors").write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(TokconvError):
        load_compressor(exported)
    write_store(tmp_path / "other")
    (tmp_path / "other" / shard_name(0)).write_bytes(struct.pack("<Q", length) + b"{}")
    with pytest.raises(TokconvError):
        TokenStore.open(tmp_path / "other")


@pytest.mark.parametrize(
    "changes",
    [{"token_grid": 10**6}, {"dim": 10**9}, {"hidden_dim": 10**9}, {"num_layers": 10**7}, {"kind": "__class__"}],
    ids=str,
)
def test_an_export_that_describes_absurd_networks_is_refused(exported: Path, changes: dict[str, object]) -> None:
    path = exported / "config.json"
    description = json.loads(path.read_text())
    description["compressor"] |= changes
    path.write_text(json.dumps(description))
    with pytest.raises(TokconvError):
        load_compressor(exported)


def test_a_link_out_of_an_export_is_checked_like_a_file(exported: Path, tmp_path: Path) -> None:
    """Check that a link may point anywhere, but its target must be a valid file."""
    (tmp_path / "secret.txt").write_text("not tensors")
    (exported / "model.safetensors").unlink()
    (exported / "model.safetensors").symlink_to(tmp_path / "secret.txt")
    with pytest.raises(TokconvError) as raised:
        load_compressor(exported)
    assert "not tensors" not in str(raised.value)


def test_wrong_ragged_offsets_are_refused(tmp_path: Path) -> None:
    content = {"tokens": torch.zeros(4, 8), "offsets": torch.tensor([0, 10**9]), "grids": torch.tensor([2])}
    save_file(content, tmp_path / "ragged.safetensors")
    with pytest.raises(TokconvError):
        load_ragged(tmp_path / "ragged.safetensors")


SECRET = "pl4nted-s3cret"


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_secret_of_the_environment_is_written_nowhere(tmp_path: Path) -> None:
    """Check the record, MLflow's database, the page, the plots, the exports, and the output."""
    few = ["training.epochs=1", "data.subset=32", f"data.store={tmp_path}/store"]
    spec = write_spec(tmp_path, trials=1, search={"model.compressor.output_grid_size": {"choice": [8]}}, base=few)
    names = ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "WANDB_API_KEY", "HF_TOKEN")
    environment = {**os.environ, **dict.fromkeys(names, SECRET), "MLFLOW_TRACKING_PASSWORD": SECRET}
    environment["PYTHONPATH"] = str(Path(tokconv.__file__).parents[1])
    command = [sys.executable, "-m", "tokconv.cli.main", "sweep", str(spec), "--allow-unproven"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert SECRET not in done.stdout + done.stderr
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(written) > 20
    assert [path for path in written if SECRET.encode() in path.read_bytes()] == []

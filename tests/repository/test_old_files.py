"""Files that tokconv wrote before its modules moved into rooms: they are read as before.

`tests/data/before_rooms` holds a token store, checkpoints after two of three epochs with the figures of the
uninterrupted runs, and exports with the tokens that they compressed.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import tokconv
from tokconv.config.overrides import from_dict
from tokconv.errors import CheckpointError
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.store.reader import TokenStore
from tokconv.training.checkpoint import load_state
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

OLD = Path(__file__).parents[1] / "data" / "before_rooms"
KINDS = ("residual", "conv", "matryoshka")
TOLERANCE = 1e-6
"""On the machine that wrote the files all figures are equal bit for bit; other CPUs sum in another order."""


@pytest.fixture
def store(tmp_path: Path) -> TokenStore:
    return TokenStore.open(shutil.copytree(OLD / "store", tmp_path / "store"), verify=True)


def old_checkpoint(kind: str, run_dir: Path, *, protocol: int) -> Path:
    """Copy a checkpoint, as one with figures of this protocol."""
    checkpoint = shutil.copytree(OLD / "checkpoint" / kind, run_dir / "checkpoints" / "epoch-0002")
    state = json.loads((checkpoint / "state.json").read_text())
    (checkpoint / "state.json").write_text(json.dumps({**state, "protocol": protocol}))
    return checkpoint


def test_an_old_store_opens(store: TokenStore) -> None:
    assert (store.token_grid, store.dim, len(store.train_indices), len(store.val_indices)) == (4, 4, 18, 6)
    assert store.fingerprint == load_state(OLD / "checkpoint" / "residual")["store_fingerprint"]
    kept = load_file(OLD / "export" / "residual.safetensors")["tokens"]
    assert torch.equal(store.tokens(store.val_indices[:2]), kept)


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_export_compresses_as_before(kind: str) -> None:
    saved = load_file(OLD / "export" / f"{kind}.safetensors")
    compressed = tokconv.load_compressor(OLD / "export" / kind)(saved["tokens"]).detach()
    assert torch.allclose(compressed, saved["compressed"], rtol=0, atol=TOLERANCE)
    assert tokconv.load_decoder(OLD / "export" / kind)(compressed).shape == saved["tokens"].shape


@pytest.mark.parametrize("kind", KINDS)
def test_an_old_checkpoint_resumes_to_the_figures_of_the_uninterrupted_run(
    kind: str, store: TokenStore, tmp_path: Path
) -> None:
    runtime = LocalRuntime(tmp_path / "run", device="cpu", resume=True)
    checkpoint = old_checkpoint(kind, tmp_path / "run", protocol=2)
    config = from_dict(load_state(checkpoint)["config"])
    with pytest.raises(CheckpointError, match="its figures are of evaluation protocol 2"):
        run_trial(config, store, runtime)
    shutil.rmtree(checkpoint)
    old_checkpoint(kind, tmp_path / "run", protocol=PROTOCOL)
    figures = run_trial(config, store, runtime).history[-1]
    expected = json.loads((OLD / "checkpoint" / f"{kind}.json").read_text())
    # The probe, which was the reader of protocol 2, has another ridge in protocol 4.
    same = {name for name in expected if not name.startswith(("val/probe_", "val/reader_"))}
    for name in same - {"train/images_per_second"}:
        assert figures[name] == pytest.approx(expected[name], rel=TOLERANCE, abs=TOLERANCE), name


def test_an_optimizer_with_other_parameter_groups_is_refused(store: TokenStore, tmp_path: Path) -> None:
    """As written for the published design, whose decoder once trained its projection like one of a closed form."""
    checkpoint = old_checkpoint("residual", tmp_path / "run", protocol=PROTOCOL)
    optimizers = torch.load(checkpoint / "optimizers.pt", weights_only=True)
    first, second = optimizers["autoencoder"]["param_groups"]
    first["params"].append(second["params"].pop())
    torch.save(optimizers, checkpoint / "optimizers.pt")
    config = from_dict(load_state(checkpoint)["config"])
    with pytest.raises(CheckpointError, match="groups its parameters differently; start a new run"):
        run_trial(config, store, LocalRuntime(tmp_path / "run", device="cpu", resume=True))

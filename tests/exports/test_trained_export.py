"""From training to the artefact: what `run_trial` left is what `load_compressor` brings back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.stores import write_store

import tokconv
from tokconv.config.overrides import compose
from tokconv.errors import DivergedError
from tokconv.evaluation.evaluator import Evaluator, codec_of
from tokconv.exports.artefact import export, load_decoder, read_config
from tokconv.store.reader import TokenStore
from tokconv.training import checkpoint as checkpoints
from tokconv.training.loop import run_trial
from tokconv.training.networks import build_networks
from tokconv.training.runtime import LocalRuntime

SMALL = [
    "model.compressor.hidden_dim=8",
    "model.compressor.num_layers=1",
    "model.autoencoder.hidden_dim=8",
    "model.autoencoder.num_layers=1",
    "training.batch_size=8",
    "training.epochs=2",
    "training.learning_rate=1e-3",
    "loss.weights.wgan=0",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny")


@pytest.mark.parametrize("grid", [2, 4])
@pytest.mark.parametrize("residual", [True, False])
def test_the_artefact_is_the_trained_pair(store: TokenStore, tmp_path: Path, grid: int, residual: bool) -> None:
    changes = [f"model.compressor.output_grid_size={grid}", f"model.compressor.use_residual={residual}".lower()]
    config = compose([*SMALL, *changes])
    result = run_trial(config, store, LocalRuntime(tmp_path / "run", device="cpu"))
    assert result.checkpoint is not None
    trained, decoder, _ = build_networks(config, store)
    checkpoints.load(result.checkpoint).restore({"compressor": trained, "decoder": decoder})
    out = export(result.checkpoint, tmp_path / "out")
    tokens = store.tokens(store.val_indices)
    with torch.no_grad():
        compressed = trained.eval()(tokens)
        assert torch.equal(tokconv.load_compressor(out)(tokens), compressed)
        assert torch.equal(load_decoder(out)(compressed), decoder.eval()(compressed))
    again = Evaluator(store, grid).evaluate(codec_of(tokconv.load_compressor(out), load_decoder(out)))
    assert {name: result.figures[name] for name in again} == again
    assert read_config(out)["figures"] == result.figures
    card = (out / "README.md").read_text(encoding="utf-8")
    assert f"{result.figures['val/fvu']:.4f}" in card
    assert store.fingerprint in card


def test_figures_that_are_not_finite_are_a_divergence_and_reach_no_checkpoint(
    store: TokenStore, tmp_path: Path
) -> None:
    one_step = ["training.epochs=1", "training.batch_size=30", "training.learning_rate=1e30"]
    wild = compose([*SMALL, *one_step, "model.compressor.output_grid_size=3"])
    with pytest.raises(DivergedError, match=r"val/fvu is not finite at step 1"):
        run_trial(wild, store, LocalRuntime(tmp_path, device="cpu"))
    assert not list(tmp_path.rglob("epoch-*"))

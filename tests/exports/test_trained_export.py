"""From training to the artefact: `load_compressor` returns what `run_trial` left, and `evaluate` its figures."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from support.champions_folders import change_config, files_of
from support.networks import PUBLISHED
from support.stores import write_store

import tokconv
from tokconv.config.overrides import compose
from tokconv.errors import CheckpointError, ConfigError, DivergedError
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator
from tokconv.exports.artefact import export, load_decoder, read_config
from tokconv.store.reader import TokenStore
from tokconv.training import checkpoint as checkpoints
from tokconv.training.loop import run_trial
from tokconv.training.networks import build_networks
from tokconv.training.runtime import LocalRuntime

SMALL = [
    *PUBLISHED,
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
    checkpoints.load(result.checkpoint).best("val/fvu").restore({"compressor": trained, "decoder": decoder})
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


def test_a_result_its_run_and_its_checkpoint_export_the_same(store: TokenStore, tmp_path: Path) -> None:
    result = tokconv.train(compose([*SMALL, "model.compressor.output_grid_size=2"]), store, tmp_path / "run")
    assert result.checkpoint is not None
    for number, source in enumerate((result, tmp_path / "run", str(tmp_path / "run"), result.checkpoint)):
        assert tokconv.export(source, tmp_path / str(number)) == tmp_path / str(number)
    contents = [files_of(tmp_path / str(number)) for number in range(4)]
    # The card names its folder.
    cards = [content.pop("README.md").decode() for content in contents]
    assert len({card.replace(str(tmp_path / str(number)), "folder") for number, card in enumerate(cards)}) == 1
    assert all(content == contents[0] for content in contents)
    with pytest.raises(CheckpointError, match="neither a checkpoint, nor a train run"):
        tokconv.export(tmp_path, tmp_path / "out")
    with pytest.raises(CheckpointError, match="left no checkpoint"):
        tokconv.export(dataclasses.replace(result, checkpoint=None), tmp_path / "out")


def test_evaluate_returns_the_figures_of_training(store: TokenStore, tmp_path: Path) -> None:
    config = compose([*SMALL, "model.compressor.output_grid_size=2"])
    result = tokconv.train(config, store, tmp_path / "run", device="cpu")
    folder = tokconv.export(result, tmp_path / "out")
    figures = tokconv.evaluate(folder, store, device="cpu")
    assert {name: result.figures[name] for name in figures} == figures
    assert {"val/fvu", "val/gain", "val/swd", "compression_ratio"} <= set(figures)
    compressor, decoder = tokconv.load_compressor(folder), tokconv.load_decoder(folder)
    assert tokconv.evaluate(compressor, store, decoder=decoder) == figures
    compressor.description = None
    assert tokconv.evaluate(compressor, store, decoder=decoder) == figures
    with pytest.raises(ConfigError, match="give decoder="):
        tokconv.evaluate(compressor, store)
    wider = write_store(tmp_path / "wider", dim=9)
    with pytest.raises(ConfigError, match=r"6x6 tokens of 8 channels; .* holds 6x6 of 9"):
        tokconv.evaluate(compressor, wider, decoder=decoder)
    change_config(folder, encoder={"name": "another"})
    with pytest.raises(CheckpointError, match="another encoder than"):
        tokconv.evaluate(folder, store)


def test_figures_that_are_not_finite_are_a_divergence_and_reach_no_checkpoint(
    store: TokenStore, tmp_path: Path
) -> None:
    one_step = ["training.epochs=1", "training.batch_size=30", "training.learning_rate=1e30"]
    wild = compose([*SMALL, *one_step, "model.compressor.output_grid_size=3"])
    with pytest.raises(DivergedError, match=r"val/fvu is not finite at step 1"):
        run_trial(wild, store, LocalRuntime(tmp_path, device="cpu"))
    assert [path.name for path in tmp_path.rglob("epoch-*")] == ["epoch-0000"]

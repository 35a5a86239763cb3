"""Weighted means of windows: their limits, their hull, and the start that is the baseline of the same name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.stores import write_store

from tokconv.config.overrides import compose
from tokconv.errors import ConfigError
from tokconv.evaluation.baselines.codecs import baseline_codec
from tokconv.evaluation.codecs import codec_of, run_codec
from tokconv.models.salient import SalientCompressor, salience, weighted_means
from tokconv.models.windows import Windows
from tokconv.training.networks import build_networks

TOKENS = torch.randn(3, 36, 5, generator=torch.Generator().manual_seed(0)) + 2


@pytest.mark.parametrize("grid", [3, 4])
def test_between_pooling_and_selection(grid: int) -> None:
    windows = Windows(6, grid)
    members = windows.split(TOKENS)
    assert torch.allclose(weighted_means(TOKENS, torch.zeros(3, 36), windows), members.mean(2), atol=1e-6)
    furthest = (members - TOKENS.mean(1)[:, None, None]).square().sum(-1).argmax(2)
    selected = members.gather(2, furthest[..., None, None].expand(-1, -1, 1, 5)).squeeze(2)
    assert torch.allclose(weighted_means(TOKENS, 1e6 * salience(TOKENS), windows), selected, atol=1e-5)


def test_cells_stay_between_the_tokens_of_their_window() -> None:
    compressor = SalientCompressor(6, 5, 3, hidden_dim=8)
    for parameter in compressor.parameters():
        torch.nn.init.normal_(parameter)
    cells, members = compressor.compress(TOKENS), compressor.windows.split(TOKENS)
    assert (cells <= members.amax(2) + 1e-5).all()
    assert (cells >= members.amin(2) - 1e-5).all()


def test_equal_tokens_have_a_gradient() -> None:
    compressor = SalientCompressor(6, 5, 3, hidden_dim=8)
    tokens = torch.ones(2, 36, 5, requires_grad=True)
    compressor(tokens).square().sum().backward()
    assert tokens.grad is not None
    assert all(gradient.isfinite().all() for gradient in (tokens.grad, compressor.sharpness.grad))


def test_training_starts_at_the_baseline(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store")
    config = compose(["model.compressor.kind=salient", "model.compressor.output_grid_size=3"])
    compressor, decoder, _ = build_networks(config, store)
    tokens, images = store.tokens(store.val_indices), store.val_indices
    started = run_codec(codec_of(compressor, decoder), tokens, images)
    baseline = run_codec(baseline_codec(store, 3, "salient"), tokens, images)
    for ours, theirs in zip(started, baseline, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4)


def test_another_start_is_refused() -> None:
    with pytest.raises(ConfigError, match="starts at means weighted by salience, leave it at pca"):
        compose(["model.compressor.kind=salient", "model.compressor.init=pooling"])

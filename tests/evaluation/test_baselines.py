"""Every baseline: it serves any grid, loses nothing where it may not, repeats exactly, and fills networks."""

from __future__ import annotations

import pytest
import torch
from support.baselines import LINEAR, MERGING, OVERLAPPING, fits_of, run_baseline
from support.networks import linear_networks

from tokconv.errors import ConfigError
from tokconv.evaluation.baselines.codecs import baseline_codec, on_device
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import compress_only, run_codec
from tokconv.store.reader import TokenStore

EVERY = tuple(name for name in BASELINES if name != "downsampled")
"""Downsampled images need images: tests/encoding/test_downsampled.py."""


@pytest.mark.parametrize("grid", [1, 2, OVERLAPPING, 5, 6])
@pytest.mark.parametrize("name", EVERY)
def test_every_grid_gives_k_times_k_tokens_and_beats_the_mean_token(store: TokenStore, name: str, grid: int) -> None:
    tokens, codes, reconstructed = run_baseline(store, name, grid)
    assert codes.shape == (len(tokens), grid**2, store.dim)
    error = (reconstructed - tokens).square().sum() / tokens.square().sum()
    assert 0 <= error < 0.9


@pytest.mark.parametrize("name", EVERY)
def test_an_equal_number_of_tokens_loses_nothing(store: TokenStore, name: str) -> None:
    tokens, codes, reconstructed = run_baseline(store, name, store.token_grid)
    assert torch.allclose(reconstructed, tokens, atol=1e-3)
    if name in ("pooling", "max_norm", "uniform", "random", "bilinear", *MERGING):
        assert torch.allclose(codes, tokens, atol=1e-5)


@pytest.mark.parametrize("name", EVERY)
def test_a_codec_runs_on_another_device(store: TokenStore, name: str) -> None:
    # Tensors of the device "meta" have no values, and refuse company from the CPU.
    meta, images = torch.device("meta"), torch.arange(2)
    codec = baseline_codec(store, 3, name)
    tokens = store.tokens(images).float()
    found = compress_only(on_device(codec, meta), tokens.to(meta), images)
    assert (found.device, found.shape) == (meta, (2, 9, store.dim))
    again = compress_only(on_device(codec, torch.device("cpu")), tokens, images)
    assert torch.equal(again, compress_only(codec, tokens, images))


@pytest.mark.parametrize("grid", [2, OVERLAPPING])
def test_fits_repeat_exactly(store: TokenStore, grid: int) -> None:
    torch.manual_seed(0)
    first = fits_of(store, grid)
    torch.manual_seed(1)
    again = fits_of(store, grid)
    assert first.keys() == again.keys()
    assert all(torch.equal(again[name], tensor) for name, tensor in first.items())


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("grid", [3, OVERLAPPING])
def test_linear_codecs_fill_networks(store: TokenStore, name: str, grid: int) -> None:
    compressor, decoder = linear_networks(store, grid)
    fitted_baselines(store, grid).linear[name].fill(compressor, decoder)
    tokens = store.tokens(store.val_indices)
    codes, reconstructed = run_codec(fitted_baselines(store, grid).codecs[name], tokens, store.val_indices)
    with torch.no_grad():
        assert torch.allclose(compressor(tokens), codes, atol=1e-4)
        assert torch.allclose(decoder(compressor(tokens)), reconstructed, atol=1e-4)


def test_a_grid_that_does_not_fit_is_refused(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and the token grid, 6"):
        fitted_baselines(store, 7)

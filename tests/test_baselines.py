"""The closed forms against what they claim to be: averages, the least error, the moments of real tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from stores import write_store

from tokconv import baselines
from tokconv.baselines import fit, linear_codecs, standardised_batches
from tokconv.evaluate import linear_networks
from tokconv.store import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=80)


def _codes(store: TokenStore, name: str, grid: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Standardised training tokens, their codes and their reconstructions."""
    compressor, decoder = linear_networks(store, grid)
    linear_codecs(store, grid)[name].fill(compressor, decoder)
    tokens = torch.cat(list(standardised_batches(store, store.train_indices)))
    with torch.no_grad():
        codes = compressor.compress(tokens)
        return tokens, codes, decoder.decode(codes)


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_pooling_is_the_average_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = _codes(store, "pooling", grid)
    windows = linear_networks(store, grid)[0].windows
    assert torch.allclose(codes, windows.split(tokens).mean(2), atol=1e-5)


def test_poolings_decoder_is_the_best_linear_one(store: TokenStore) -> None:
    tokens, codes, reconstructed = _codes(store, "pooling", 3)
    windows = linear_networks(store, 3)[0].windows
    x = torch.cat([codes.flatten(0, 1), torch.ones(codes.shape[0] * 9, 1)], 1).double()
    y = windows.split(tokens).flatten(0, 1).flatten(1).double()
    best = x @ torch.linalg.lstsq(x, y).solution
    ours = windows.split(reconstructed).flatten(0, 1).flatten(1).double()
    assert (ours - y).square().sum().item() == pytest.approx((best - y).square().sum().item(), rel=1e-4)


def test_window_pca_has_the_error_that_the_spectrum_allows(store: TokenStore) -> None:
    tokens, _, reconstructed = _codes(store, "window_pca", 3)
    windows = linear_networks(store, 3)[0].windows
    flat = windows.split(tokens).flatten(0, 1).flatten(1).double()
    spectrum = torch.linalg.svdvals(flat - flat.mean(0)).square()
    assert (reconstructed - tokens).double().square().sum().item() == pytest.approx(
        spectrum[store.dim :].sum().item(), rel=1e-4
    )


def test_matching_loses_nothing_and_has_the_tokens_moments(store: TokenStore) -> None:
    tokens, codes, reconstructed = _codes(store, "matched_window_pca", 3)
    _, _, plain = _codes(store, "window_pca", 3)
    assert torch.allclose(reconstructed, plain, atol=1e-3)
    flat, real = codes.flatten(0, 1).double(), tokens.flatten(0, 1).double()
    assert torch.allclose(flat.mean(0), real.mean(0), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.cov(real.T), atol=2e-2)


@pytest.mark.parametrize("limit", ["MAX_FULL_DECOMPOSITION", "MAX_EXACT_WINDOW"])
def test_a_randomised_basis_comes_close_to_the_exact_one(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    exact = fit(store, 2)["window_pca"]
    monkeypatch.setattr(baselines, limit, 1)
    randomised = fit(store, 2)["window_pca"]
    # The same subspace: projecting one basis on the other keeps its length.
    overlap = (exact.decode_weight.T @ randomised.decode_weight).square().sum() / store.dim
    assert overlap.item() == pytest.approx(1, abs=1e-3)


def test_fewer_windows_than_channels_still_give_a_codec(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write_store(tmp_path / "few", num_images=4)
    for limit in (10_000, 1):
        monkeypatch.setattr(baselines, "MAX_EXACT_WINDOW", limit)
        for codec in fit(few, 1).values():
            assert all(torch.isfinite(value).all() for value in vars(codec).values())


def test_codecs_are_fitted_once(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = linear_codecs(store, 3)["pooling"]
    monkeypatch.setattr(baselines, "fit", lambda *_: pytest.fail("fitted again"))
    assert torch.equal(linear_codecs(store, 3)["pooling"].encode_weight, first.encode_weight)

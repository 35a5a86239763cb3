"""The closed forms against what they claim to be: averages, the least error, the moments of real tokens."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch
from support.baselines import LINEAR, MERGING, OVERLAPPING, fits_of, run_baseline
from torch import Tensor

from tokconv.evaluation.baselines import fits
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import run_codec
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore

TOGETHER = tuple(entry.name for entry in fits.FITTED)
OF_WINDOWS = tuple(name for name in TOGETHER if name not in MERGING)
# Decoders


@pytest.mark.parametrize("grid", [3, OVERLAPPING])
@pytest.mark.parametrize("name", OF_WINDOWS)
def test_the_decoder_of_a_window_is_the_best_affine_one(store: TokenStore, name: str, grid: int) -> None:
    windows = Windows(store.token_grid, grid)
    tokens, codes, _ = run_baseline(store, name, grid)
    x = torch.cat([codes.flatten(0, 1), torch.ones(codes.shape[0] * grid**2, 1)], 1).double()
    y = windows.split(tokens).flatten(0, 1).flatten(1).double()
    best = x @ torch.linalg.lstsq(x, y).solution
    ours = _predicted_windows(fits_of(store, grid), name, codes)
    assert (ours - y).square().sum().item() == pytest.approx((best - y).square().sum().item(), rel=1e-4)


def _predicted_windows(fit: Mapping[str, Tensor], name: str, codes: Tensor) -> Tensor:
    """Return the decoder's prediction of each window, before overlaps are averaged; [B*K, W*C] float64."""
    weight, bias = fit[f"{name}.decode_weight"], fit[f"{name}.decode_bias"]
    return (codes.flatten(0, 1) @ weight.T + bias).double()


@pytest.mark.parametrize("name", MERGING)
def test_the_decoder_of_merged_tokens_is_the_best_affine_one(store: TokenStore, name: str) -> None:
    tokens, _, reconstructed = run_baseline(store, name, 3)
    merged, groups = BASELINES[name].function(tokens, 9)
    unmerged = merged.gather(1, groups[..., None].expand_as(tokens)).double()
    # A bias per position is one one-hot column per position.
    position = torch.eye(store.num_tokens, dtype=torch.float64).repeat(len(tokens), 1)
    x, y = torch.cat([unmerged.flatten(0, 1), position], 1), tokens.flatten(0, 1).double()
    best = x @ torch.linalg.lstsq(x, y).solution
    ours = reconstructed.flatten(0, 1).double()
    assert (ours - y).square().sum().item() == pytest.approx((best - y).square().sum().item(), rel=1e-4)


def test_window_pca_is_the_best_linear_baseline(store: TokenStore) -> None:
    errors = {}
    for name in LINEAR:
        tokens, _, reconstructed = run_baseline(store, name, 3)
        errors[name] = (reconstructed - tokens).square().sum().item()
    best = errors.pop("window_pca")
    assert errors.pop("matched_window_pca") == pytest.approx(best, rel=1e-3)
    assert all(best < error for error in errors.values())


# Compressors of windows


@pytest.mark.parametrize("grid", [2, 3, OVERLAPPING])
def test_pooling_is_the_average_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = run_baseline(store, "pooling", grid)
    assert torch.allclose(codes, Windows(store.token_grid, grid).split(tokens).mean(2), atol=1e-5)


@pytest.mark.parametrize("grid", [3, OVERLAPPING])
def test_max_norm_selects_the_longest_token_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = run_baseline(store, "max_norm", grid)
    lengths = Windows(store.token_grid, grid).split(tokens).norm(dim=-1)
    assert torch.allclose(codes.norm(dim=-1), lengths.amax(2), atol=1e-4)
    distances = torch.cdist(codes, tokens).amin(2)
    assert distances.max() < 1e-2


@pytest.mark.parametrize("grid", [2, 3, OVERLAPPING])
def test_uniform_selection_takes_the_centre_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = run_baseline(store, "uniform", grid)
    width = -(-6 // grid)
    starts = [round(row * (6 - width) / max(1, grid - 1)) for row in range(grid)]
    rows = torch.tensor([start + width // 2 for start in starts])
    centres = tokens.unflatten(1, (6, 6))[:, rows][:, :, rows].flatten(1, 2)
    assert torch.allclose(codes, centres, atol=1e-5)


@pytest.mark.parametrize("grid", [2, OVERLAPPING])
def test_random_selection_depends_on_the_image_alone(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = run_baseline(store, "random", grid)
    codec, images = fitted_baselines(store, grid).codecs["random"], store.train_indices
    some = torch.tensor([7, 3, 11])
    again, _ = run_codec(codec, store.tokens(images[some]), images[some])
    assert torch.allclose(store.standardise(again), codes[some], atol=1e-5)
    inside = Windows(6, grid).split(tokens)
    distances = (inside - codes[:, :, None]).norm(dim=-1)
    assert distances.amin(2).max() < 1e-4
    # Every place of a window is drawn about equally often: 60 images at K windows.
    counts = distances.argmin(2).flatten().bincount(minlength=inside.shape[2])
    expected = len(images) * grid**2 / inside.shape[2]
    assert (counts - expected).abs().max() < 5 * expected**0.5


def test_bilinear_reads_the_middle_of_each_cell(store: TokenStore) -> None:
    tokens, codes, _ = run_baseline(store, "bilinear", 3)
    # At k = 3 the middle of a 2 x 2 window is its mean; at k = 2 the middle of a 3 x 3 window is a token.
    assert torch.allclose(codes, Windows(store.token_grid, 3).split(tokens).mean(2), atol=1e-4)
    _, codes, _ = run_baseline(store, "bilinear", 2)
    assert torch.allclose(codes, Windows(store.token_grid, 2).split(tokens)[:, :, 4], atol=1e-4)


def test_pixel_shuffle_is_an_orthogonal_projection(store: TokenStore) -> None:
    weight = fitted_baselines(store, 3).linear["pixel_shuffle"].encode_weight
    assert torch.allclose(weight @ weight.T, torch.eye(store.dim), atol=1e-5)


def test_matching_loses_nothing_and_has_the_tokens_moments(store: TokenStore) -> None:
    tokens, codes, reconstructed = run_baseline(store, "matched_window_pca", 3)
    _, _, plain = run_baseline(store, "window_pca", 3)
    assert torch.allclose(reconstructed, plain, atol=1e-3)
    flat, real = codes.flatten(0, 1).double(), tokens.flatten(0, 1).double()
    assert torch.allclose(flat.mean(0), real.mean(0), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.cov(real.T), atol=2e-2)

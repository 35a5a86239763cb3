"""The closed forms against what they claim to be: averages, the least error, the moments of real tokens."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from support.networks import linear_networks
from support.stores import write_store
from torch import Tensor

from tokconv.errors import ConfigError, StoreError
from tokconv.evaluation.baselines import fits, fitting
from tokconv.evaluation.baselines.codecs import baseline_codec, on_device
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.pca import exact_components, randomised_components, sampled_components
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import compress_only, run_codec
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches

MERGING = ("tome", "prumerge")
LINEAR = ("pooling", "pixel_shuffle", "window_pca", "matched_window_pca")
EVERY = tuple(name for name in BASELINES if name != "downsampled")
"""Downsampled images need images: tests/encoding/test_downsampled.py."""
TOGETHER = tuple(entry.name for entry in fits.FITTED)
OF_WINDOWS = tuple(name for name in TOGETHER if name not in MERGING)
OVERLAPPING = 4
"""A grid whose windows overlap: 4 does not divide 6."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=80)


def _fits(store: TokenStore, grid: int) -> dict[str, Tensor]:
    """Return the tensors of every baseline, fitted anew."""
    parts = [fits.WINDOWS, *(entry.name for entry in fits.FITTED if entry not in fits.IN_WINDOWS)]
    return {name: tensor for part in parts for name, tensor in fits.fit_part(store, grid, part).items()}


def _tokens(store: TokenStore) -> Tensor:
    """Return the standardised training tokens, on which all baselines are fitted."""
    return torch.cat(list(standardised_batches(store, store.train_indices)))


def _run(store: TokenStore, name: str, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardised training tokens, their codes and their reconstructions."""
    images = store.train_indices
    codes, reconstructed = run_codec(baseline_codec(store, grid, name), store.tokens(images), images)
    return _tokens(store), (codes - store.mean) / store.scale, (reconstructed - store.mean) / store.scale


# Every baseline


@pytest.mark.parametrize("grid", [1, 2, OVERLAPPING, 5, 6])
@pytest.mark.parametrize("name", EVERY)
def test_every_grid_gives_k_times_k_tokens_and_beats_the_mean_token(store: TokenStore, name: str, grid: int) -> None:
    tokens, codes, reconstructed = _run(store, name, grid)
    assert codes.shape == (len(tokens), grid**2, store.dim)
    error = (reconstructed - tokens).square().sum() / tokens.square().sum()
    assert 0 <= error < 0.9


@pytest.mark.parametrize("name", EVERY)
def test_an_equal_number_of_tokens_loses_nothing(store: TokenStore, name: str) -> None:
    tokens, codes, reconstructed = _run(store, name, store.token_grid)
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
    first = _fits(store, grid)
    torch.manual_seed(1)
    again = _fits(store, grid)
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


# Decoders


@pytest.mark.parametrize("grid", [3, OVERLAPPING])
@pytest.mark.parametrize("name", OF_WINDOWS)
def test_the_decoder_of_a_window_is_the_best_affine_one(store: TokenStore, name: str, grid: int) -> None:
    windows = Windows(store.token_grid, grid)
    tokens, codes, _ = _run(store, name, grid)
    x = torch.cat([codes.flatten(0, 1), torch.ones(codes.shape[0] * grid**2, 1)], 1).double()
    y = windows.split(tokens).flatten(0, 1).flatten(1).double()
    best = x @ torch.linalg.lstsq(x, y).solution
    ours = _predicted_windows(_fits(store, grid), name, codes)
    assert (ours - y).square().sum().item() == pytest.approx((best - y).square().sum().item(), rel=1e-4)


def _predicted_windows(fit: Mapping[str, Tensor], name: str, codes: Tensor) -> Tensor:
    """Return the decoder's prediction of each window, before overlaps are averaged; [B*K, W*C] float64."""
    weight, bias = fit[f"{name}.decode_weight"], fit[f"{name}.decode_bias"]
    return (codes.flatten(0, 1) @ weight.T + bias).double()


@pytest.mark.parametrize("name", MERGING)
def test_the_decoder_of_merged_tokens_is_the_best_affine_one(store: TokenStore, name: str) -> None:
    tokens, _, reconstructed = _run(store, name, 3)
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
        tokens, _, reconstructed = _run(store, name, 3)
        errors[name] = (reconstructed - tokens).square().sum().item()
    best = errors.pop("window_pca")
    assert errors.pop("matched_window_pca") == pytest.approx(best, rel=1e-3)
    assert all(best < error for error in errors.values())


# Compressors of windows


@pytest.mark.parametrize("grid", [2, 3, OVERLAPPING])
def test_pooling_is_the_average_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = _run(store, "pooling", grid)
    assert torch.allclose(codes, Windows(store.token_grid, grid).split(tokens).mean(2), atol=1e-5)


@pytest.mark.parametrize("grid", [3, OVERLAPPING])
def test_max_norm_selects_the_longest_token_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = _run(store, "max_norm", grid)
    lengths = Windows(store.token_grid, grid).split(tokens).norm(dim=-1)
    assert torch.allclose(codes.norm(dim=-1), lengths.amax(2), atol=1e-4)
    distances = torch.cdist(codes, tokens).amin(2)
    assert distances.max() < 1e-2


@pytest.mark.parametrize("grid", [2, 3, OVERLAPPING])
def test_uniform_selection_takes_the_centre_of_each_window(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = _run(store, "uniform", grid)
    width = -(-6 // grid)
    starts = [round(row * (6 - width) / max(1, grid - 1)) for row in range(grid)]
    rows = torch.tensor([start + width // 2 for start in starts])
    centres = tokens.unflatten(1, (6, 6))[:, rows][:, :, rows].flatten(1, 2)
    assert torch.allclose(codes, centres, atol=1e-5)


@pytest.mark.parametrize("grid", [2, OVERLAPPING])
def test_random_selection_depends_on_the_image_alone(store: TokenStore, grid: int) -> None:
    tokens, codes, _ = _run(store, "random", grid)
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
    tokens, codes, _ = _run(store, "bilinear", 3)
    # At k = 3 the middle of a 2 x 2 window is its mean; at k = 2 the middle of a 3 x 3 window is a token.
    assert torch.allclose(codes, Windows(store.token_grid, 3).split(tokens).mean(2), atol=1e-4)
    _, codes, _ = _run(store, "bilinear", 2)
    assert torch.allclose(codes, Windows(store.token_grid, 2).split(tokens)[:, :, 4], atol=1e-4)


def test_pixel_shuffle_is_an_orthogonal_projection(store: TokenStore) -> None:
    weight = fitted_baselines(store, 3).linear["pixel_shuffle"].encode_weight
    assert torch.allclose(weight @ weight.T, torch.eye(store.dim), atol=1e-5)


def test_matching_loses_nothing_and_has_the_tokens_moments(store: TokenStore) -> None:
    tokens, codes, reconstructed = _run(store, "matched_window_pca", 3)
    _, _, plain = _run(store, "window_pca", 3)
    assert torch.allclose(reconstructed, plain, atol=1e-3)
    flat, real = codes.flatten(0, 1).double(), tokens.flatten(0, 1).double()
    assert torch.allclose(flat.mean(0), real.mean(0), atol=1e-3)
    assert torch.allclose(torch.cov(flat.T), torch.cov(real.T), atol=2e-2)


# PCA


def test_window_pca_agrees_with_scikit_learn(store: TokenStore) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    tokens, _, reconstructed = _run(store, "window_pca", 3)
    windows = Windows(store.token_grid, 3)
    flat = windows.split(tokens).flatten(0, 1).flatten(1).double().numpy()
    reference = decomposition.PCA(store.dim, svd_solver="full").fit(flat)
    projected = torch.from_numpy(reference.inverse_transform(reference.transform(flat)))
    ours = windows.split(reconstructed).flatten(0, 1).flatten(1).double()
    assert torch.allclose(ours, projected, atol=1e-4)
    codec = fitted_baselines(store, 3).linear["window_pca"]
    cosines = (codec.encode_weight.double() * torch.from_numpy(reference.components_)).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(store.dim, dtype=torch.float64), atol=1e-4)


SPECTRA = {
    "noise alone": torch.ones(200),
    "low rank and noise": torch.cat([torch.full((5,), 30.0), torch.full((195,), 0.3)]),
    "slow decay": torch.arange(1, 201) ** -0.5,
    "fast decay": 0.8 ** torch.arange(200),
    "lower rank than asked for": torch.cat([torch.ones(5), torch.zeros(195)]),
}


@pytest.mark.parametrize("sampled", [False, True])
@pytest.mark.parametrize("deviations", SPECTRA.values(), ids=SPECTRA)
def test_the_shortfall_of_a_randomised_basis_bounds_what_it_misses(deviations: Tensor, sampled: bool) -> None:
    sample = torch.randn(900, 200, generator=torch.Generator().manual_seed(0)) * deviations
    covariance = (sample.T @ sample / len(sample)).double()
    exact = exact_components(covariance, 16)
    if sampled:
        found = sampled_components(sample - sample.mean(0), 16)
        covariance = torch.cov(sample.T.double(), correction=0)
        exact = exact_components(covariance, 16)
    else:
        found = randomised_components(covariance.matmul, width=200, rank=200, dim=16, dtype=torch.float64)
    captured = torch.trace(found.basis.T @ covariance @ found.basis).item()
    assert torch.allclose(found.basis.T @ found.basis, torch.eye(16, dtype=torch.float64), atol=1e-6)
    assert captured == pytest.approx(found.variance.sum().item(), rel=1e-5)
    missed = 1 - captured / exact.variance.sum().item()
    assert exact.shortfall == 0
    assert (-1e-6 if sampled else -1e-9) < missed <= found.shortfall  # products of samples are float32
    # A bound of 1 would be true and useless.
    assert found.shortfall < 0.05


@pytest.mark.parametrize("limit", ["MAX_DECOMPOSED", "MAX_COVARIANCE"])
def test_randomised_codecs_come_close_to_the_exact_ones(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    exact = _fits(store, 2)
    monkeypatch.setattr(fits, limit, 1)
    randomised = _fits(store, 2)
    # The same subspace: projecting one basis on the other preserves its length.
    weights = exact["window_pca.decode_weight"], randomised["window_pca.decode_weight"]
    assert ((weights[0].T @ weights[1]).square().sum() / store.dim).item() == pytest.approx(1, abs=1e-3)
    assert exact[fits.SHORTFALL] == 0
    assert 0 < randomised[fits.SHORTFALL] < 2e-3


def test_fewer_windows_than_channels_still_give_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write_store(tmp_path / "few", num_images=4)
    for limit in (10_000, 1):
        monkeypatch.setattr(fits, "MAX_COVARIANCE", limit)
        assert all(torch.isfinite(value).all() for value in _fits(few, 1).values())


# Files beside a store


def test_only_what_is_asked_for_is_fitted_and_only_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, seen = write_store(tmp_path / "own", num_images=8), []
    fitting.fit_together(
        own, 2, ["pooling", "matched_window_pca"], lambda done, total, what: seen.append((done, total))
    )
    assert seen == sorted(seen)
    assert seen[-1][0] == seen[-1][1] > 0
    assert [path.name for path in own.derived_dir.glob("*.safetensors")] == ["codec-windows-v3-grid-02.safetensors"]
    first = fitted_baselines(own, 2).linear["pooling"]
    monkeypatch.setattr(fitting, "fit_part", lambda *_: pytest.fail("fitted again"))
    assert torch.equal(fitted_baselines(own, 2).linear["pooling"].encode_weight, first.encode_weight)
    fitting.fit_together(own, 2, ["window_pca"], lambda done, total, what: pytest.fail("fitted again"))


def test_the_one_file_of_older_versions_is_still_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own = write_store(tmp_path / "own", num_images=8)
    path, tensors = own.derived_dir / "codecs-v3-grid-02.safetensors", _fits(own, 2)
    path.parent.mkdir(exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, {"store": own.fingerprint})
    monkeypatch.setattr(fitting, "fit_part", lambda *_: pytest.fail("fitted again"))
    decoder = fitted_baselines(own, 2).linear["matched_window_pca"].decode_weight
    assert torch.equal(decoder, tensors["matched_window_pca.decode_weight"])
    tokens = own.tokens(own.val_indices)
    assert all(len(run_codec(codec, tokens, own.val_indices)) for codec in fitted_baselines(own, 2).codecs.values())


def test_damaged_and_foreign_codecs_are_refused(tmp_path: Path) -> None:
    own = write_store(tmp_path / "own", num_images=8)

    def read() -> object:
        return fitted_baselines(own, 2).linear["pooling"]

    assert read()
    path = next(own.derived_dir.glob("codec-windows-*.safetensors"))
    whole = path.read_bytes()
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    for damaged in (b"", whole[: len(whole) // 2], b"\xff" * 100):
        path.write_bytes(damaged)
        with pytest.raises(StoreError, match=r"damaged .* remove it and it is computed again"):
            read()
    save_file(tensors, path, {"store": "another"})
    with pytest.raises(StoreError, match=r"computed from something else .*store 'another'"):
        read()
    lacking = {name: tensor for name, tensor in tensors.items() if name != "window_pca.decode_bias"}
    for changed in (
        {**tensors, "pooling.decode_bias": torch.zeros(3)},
        {**tensors, fits.SHORTFALL: torch.tensor(math.nan)},
        lacking,
    ):
        save_file(changed, path, {"store": own.fingerprint})
        with pytest.raises(StoreError, match="damaged"):
            read()
    path.unlink()
    assert read()


def test_a_grid_that_does_not_fit_is_refused(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="must be between 1 and the token grid, 6"):
        fitted_baselines(store, 7)

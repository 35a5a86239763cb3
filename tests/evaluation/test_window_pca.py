"""Window PCA, exact and randomised: against scikit-learn, and against the bound of what it misses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.baselines import fits_of, run_baseline
from support.stores import write_store
from torch import Tensor

from tokconv.evaluation.baselines import fits
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.pca import exact_components, randomised_components, sampled_components
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore

SPECTRA = {
    "noise alone": torch.ones(200),
    "low rank and noise": torch.cat([torch.full((5,), 30.0), torch.full((195,), 0.3)]),
    "slow decay": torch.arange(1, 201) ** -0.5,
    "fast decay": 0.8 ** torch.arange(200),
    "lower rank than asked for": torch.cat([torch.ones(5), torch.zeros(195)]),
}


def test_window_pca_agrees_with_scikit_learn(store: TokenStore) -> None:
    decomposition = pytest.importorskip("sklearn.decomposition")
    tokens, _, reconstructed = run_baseline(store, "window_pca", 3)
    windows = Windows(store.token_grid, 3)
    flat = windows.split(tokens).flatten(0, 1).flatten(1).double().numpy()
    reference = decomposition.PCA(store.dim, svd_solver="full").fit(flat)
    projected = torch.from_numpy(reference.inverse_transform(reference.transform(flat)))
    ours = windows.split(reconstructed).flatten(0, 1).flatten(1).double()
    assert torch.allclose(ours, projected, atol=1e-4)
    codec = fitted_baselines(store, 3).linear["window_pca"]
    cosines = (codec.encode_weight.double() * torch.from_numpy(reference.components_)).sum(1).abs()
    assert torch.allclose(cosines, torch.ones(store.dim, dtype=torch.float64), atol=1e-4)


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
    exact = fits_of(store, 2)
    monkeypatch.setattr(fits, limit, 1)
    randomised = fits_of(store, 2)
    # The same subspace: projecting one basis on the other preserves its length.
    weights = exact["window_pca.decode_weight"], randomised["window_pca.decode_weight"]
    assert ((weights[0].T @ weights[1]).square().sum() / store.dim).item() == pytest.approx(1, abs=1e-3)
    assert exact[fits.SHORTFALL] == 0
    assert 0 < randomised[fits.SHORTFALL] < 2e-3


def test_fewer_windows_than_channels_still_give_codecs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few = write_store(tmp_path / "few", num_images=4)
    for limit in (10_000, 1):
        monkeypatch.setattr(fits, "MAX_COVARIANCE", limit)
        assert all(torch.isfinite(value).all() for value in fits_of(few, 1).values())

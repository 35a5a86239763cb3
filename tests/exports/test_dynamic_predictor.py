"""The features that the choice of a grid is based on, the prediction, and the rule, on plain tensors."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokconv.errors import ConfigError
from tokconv.exports.dynamic.compare import explained, mixed_tokens, savings, targets_between
from tokconv.exports.dynamic.predictor import ErrorPredictor, choose, fit_predictor
from tokconv.exports.dynamic.spectrum import Spectrum, principal_axes

GRIDS = (2, 3, 4)


def spectrum_of(dim: int) -> Spectrum:
    axes = torch.linalg.qr(torch.randn(dim, dim, generator=torch.Generator().manual_seed(2))).Q
    return Spectrum(torch.full((dim,), 0.5), axes, torch.tensor(2.0))


def synthetic(images: int, noise: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Return energies [n, 12], and errors [n, 3] that are products of their powers times a lognormal disturbance."""
    generator = torch.Generator().manual_seed(seed)
    energies = torch.randn(images, 12, generator=generator).exp()
    powers = torch.rand(12, 3, generator=torch.Generator().manual_seed(99)) / 4
    disturbance = noise * torch.randn(images, 3, generator=generator)
    errors = (energies.log() @ powers + disturbance).exp() * torch.tensor([0.04, 0.02, 0.01])
    return energies, errors.double()


# The features


@pytest.mark.parametrize(("token_grid", "bands"), [(24, 5), (16, 5), (6, 3), (3, 2)])
def test_bands_hold_all_the_energy(token_grid: int, bands: int) -> None:
    tokens = torch.randn(4, token_grid**2, 8, generator=torch.Generator().manual_seed(1))
    energies = spectrum_of(8)(tokens)
    assert energies.shape == (4, 8 * bands)
    total = ((tokens - 0.5) / 2).square().sum((1, 2)) / token_grid**2
    # A pyramid whose side lengths are even until it ends at 3 is an orthogonal decomposition.
    torch.testing.assert_close(energies.sum(1), total, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("token_grid", [1, 2, 5, 7, 14, 27])
def test_any_grid_has_finite_energies(token_grid: int) -> None:
    tokens = torch.randn(2, token_grid**2, 8, generator=torch.Generator().manual_seed(1))
    for some in (tokens, torch.zeros_like(tokens)):
        energies = spectrum_of(8)(some)
        assert torch.isfinite(energies).all()
        assert (energies >= 0).all()


def test_wide_tokens_are_summed_in_groups() -> None:
    tokens = torch.randn(2, 36, 100, generator=torch.Generator().manual_seed(1))
    energies = spectrum_of(100)(tokens)
    assert energies.shape == (2, 3 * 64)
    torch.testing.assert_close(energies.sum(1), ((tokens - 0.5) / 2).square().sum((1, 2)) / 36, rtol=1e-4, atol=1e-4)


def test_coarse_and_fine_patterns_are_in_different_bands() -> None:
    checkers = torch.tensor([[1.0, -1.0], [-1.0, 1.0]])
    fine, coarse = checkers.repeat(4, 4), checkers.repeat_interleave(4, 0).repeat_interleave(4, 1)
    tokens = torch.stack([fine, coarse, torch.ones(8, 8)]).flatten(1)[..., None].repeat(1, 1, 2)
    spectrum = Spectrum(torch.zeros(2), torch.eye(2), torch.tensor(1.0))
    bands = spectrum(tokens).unflatten(1, (-1, 2))[..., 0]
    torch.testing.assert_close(bands, torch.eye(4)[[0, 2, 3]])


def test_principal_axes_agree_with_a_decomposition() -> None:
    tokens = torch.randn(20, 9, 6, generator=torch.Generator().manual_seed(1)) * torch.tensor([1.0, 5, 2, 4, 3, 6])
    axes = principal_axes(tokens.split(7))
    reference = torch.linalg.svd(tokens.flatten(0, 1), full_matrices=False).Vh.T
    torch.testing.assert_close((axes.T @ reference).abs(), torch.eye(6), atol=1e-3, rtol=0)


# The prediction


@pytest.mark.parametrize(("images", "noise", "least"), [(60, 0.02, 0.97), (300, 0.3, 0.5)])
def test_a_synthetic_relation_is_recovered(images: int, noise: float, least: float) -> None:
    predictor = fit_predictor(spectrum_of(4), *synthetic(images, noise))
    energies, errors = synthetic(500, noise, seed=1)
    r2, ranks = explained(predictor.log_error(energies).exp(), errors)
    assert min(r2) > least
    assert min(ranks) > least


def test_noise_is_not_fitted() -> None:
    """With nearly as many features as images and nothing to find, the mean is the best prediction."""
    energies, _ = synthetic(14, 0.0)
    errors = torch.randn(14, 3, generator=torch.Generator().manual_seed(5)).exp().double()
    predicted = fit_predictor(spectrum_of(4), energies, errors).log_error(synthetic(200, 0.0, seed=1)[0])
    assert float(predicted.std(0).max()) < 0.7 * float(errors.log().std(0).max())


@pytest.mark.parametrize("confidence", [0.1, 0.5, 0.9])
def test_bounds_hold_with_their_confidence(confidence: float) -> None:
    predictor = fit_predictor(spectrum_of(4), *synthetic(400, 0.3))
    energies, errors = synthetic(4000, 0.3, seed=1)
    shares = (errors <= predictor.upper_of(energies, confidence)).double().mean(0)
    assert float((shares - confidence).abs().max()) < 0.06


def test_more_confidence_is_a_wider_margin() -> None:
    predictor = fit_predictor(spectrum_of(4), *synthetic(60, 0.3))
    margins = torch.stack([predictor.margin(q) for q in (0.02, 0.3, 0.5, 0.9, 60 / 61)])
    assert (margins.diff(dim=0) >= 0).all()


@pytest.mark.parametrize("confidence", [0.0, 1.0, -1.0, 1.5, math.nan, 0.99])
def test_a_confidence_beyond_the_fitted_images_is_refused(confidence: float) -> None:
    predictor = fit_predictor(spectrum_of(4), *synthetic(60, 0.3))
    with pytest.raises(ConfigError, match=r"at most 0\.9836, because the predictor was fitted on 60 images"):
        predictor.margin(confidence)


def test_a_lossless_grid_and_a_constant_feature_give_finite_predictions() -> None:
    energies, errors = synthetic(60, 0.1)
    energies[:, 3], energies[:, 4], errors[:, 2] = 0, 7, 0
    predictor = fit_predictor(spectrum_of(4), energies, errors)
    predicted = predictor.log_error(energies).exp()
    assert torch.isfinite(predicted).all()
    assert float(predicted[:, 2].max()) < 1e-8


def test_a_predictor_rebuilt_from_its_tensors_is_the_same() -> None:
    predictor = fit_predictor(spectrum_of(12), *synthetic(60, 0.1))
    state = predictor.state_dict()
    again = ErrorPredictor(Spectrum(*(state[f"spectrum.{name}"] for name in ("mean", "axes", "scale"))), state)
    energies, _ = synthetic(5, 0.1, seed=1)
    assert torch.equal(again.upper_of(energies, 0.7), predictor.upper_of(energies, 0.7))
    with pytest.raises(ValueError, match="different numbers"):
        ErrorPredictor(spectrum_of(12), state | {"bias": torch.zeros(2)})


# The rule


@given(st.integers(0, 1000), st.floats(1e-3, 2), st.floats(1, 3))
def test_a_looser_target_never_takes_more_tokens(seed: int, target: float, looser: float) -> None:
    errors = torch.rand(20, 4, generator=torch.Generator().manual_seed(seed))
    tight, met = choose(errors, target)
    loose, met_loose = choose(errors, target * looser)
    assert (loose <= tight).all()
    assert (met_loose | ~met).all()


def test_the_ends_of_the_rule() -> None:
    errors = torch.rand(50, 4, generator=torch.Generator().manual_seed(0)) + 0.01
    index, met = choose(errors, 1e-9)
    assert set(index.tolist()) == {3}
    assert not met.any()
    index, met = choose(errors, 1e9)
    assert set(index.tolist()) == {0}
    assert met.all()


def test_the_smallest_grid_that_meets_it_is_chosen_and_no_grid_means_the_largest() -> None:
    errors = torch.tensor([[3.0, 2, 1], [1, 2, 3], [3, 1, 2], [9, 9, 9], [2, 2, 2]])
    index, met = choose(errors, 2)
    assert index.tolist() == [1, 0, 1, 2, 0]
    assert met.tolist() == [True, True, True, False, True]


# The comparison


def test_mixtures_of_fixed_grids_cost_what_they_should() -> None:
    sizes, fixed = torch.tensor([4.0, 9, 16]), torch.tensor([0.5, 0.3, 0.1])
    wanted = torch.tensor([0.9, 0.5, 0.4, 0.3, 0.2, 0.1, 0.05])
    expected = torch.tensor([4, 4, 6.5, 9, 12.5, 16, 16])
    torch.testing.assert_close(mixed_tokens(wanted, fixed.expand(7, -1), sizes), expected)
    # A middle grid above the line between its neighbours never pays.
    poor = torch.tensor([0.5, 0.49, 0.1])
    found = mixed_tokens(torch.tensor([0.3]), poor[None], sizes)
    torch.testing.assert_close(found, torch.tensor([10.0]))


def test_knowing_the_errors_saves_tokens_and_guessing_does_not() -> None:
    """Test hard and easy images: the oracle gives hard ones more; a choice by other images' errors is a mixture."""
    generator = torch.Generator().manual_seed(0)
    hardness = torch.randn(400, 1, generator=generator).mul(0.8).exp().double()
    errors = hardness * torch.tensor([0.04, 0.02, 0.01])
    targets = targets_between(errors)
    assert targets == sorted(targets)
    shuffled = errors[torch.randperm(400, generator=generator)]
    middle = [row for row in savings(errors, errors, GRIDS, targets) if 5 < row.tokens < 15]
    assert middle
    for row in middle:
        assert 0 < row.low <= row.saving <= row.high
        assert row.met + row.unmet == pytest.approx(1)
    for row in savings(errors, shuffled, GRIDS, [row.target for row in middle]):
        assert row.low <= 0.02
        assert row.tokens == pytest.approx(next(m.tokens for m in middle if m.target == row.target))


def test_one_fixed_grid_is_compared_with_itself() -> None:
    errors = torch.rand(30, 3, generator=torch.Generator().manual_seed(0)).double() * torch.tensor([4.0, 2, 1])
    for target, size, number in ((1e-9, 16, 2), (1e9, 4, 0)):
        (row,) = savings(errors, errors, GRIDS, [target])
        assert (row.tokens, row.fixed_tokens, row.mixed_tokens) == pytest.approx((size, size, size))
        assert row.saving == pytest.approx(0, abs=1e-9)
        assert row.fvu == pytest.approx(float(errors[:, number].mean()))

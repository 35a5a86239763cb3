"""The two-sample tests and the readers on constructed cases: each figure moves the right way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor

from tokconv.evaluation.attention_reader import fit_reader, token_positions
from tokconv.evaluation.likeness import whitening_of
from tokconv.evaluation.metrics.wasserstein import projections, sliced_wasserstein, sorted_projections
from tokconv.evaluation.two_sample import JudgeSize, Sides, area_under_curve, two_sample_auc

DIM, SIDE, TRAIN, HELD_OUT = 8, 3, 300, 200
TOKENS = JudgeSize(width=32, steps=250, batch=128, rate=1.5e-2, passes=99)
GRIDS = JudgeSize(width=32, steps=80, batch=32, rate=1e-2, passes=99)
SPREAD = torch.tensor([2.0, 1.5, 1.2, 1.0, 1.0, 0.8, 0.5, 0.02])
"""Standard deviations of the channels; the last one is small."""


def tokens(seed: int) -> Sides:
    """Tokens that are far from Gaussian, of neighbours that are alike: one of two signs for a whole image."""
    generator = torch.Generator().manual_seed(seed)
    sign = torch.randn(TRAIN + HELD_OUT, 1, DIM, generator=generator).sign()
    own = torch.randn(TRAIN + HELD_OUT, SIDE**2, DIM, generator=generator)
    values = (sign + 0.3 * own) * SPREAD
    return Sides(values[:TRAIN], values[TRAIN:])


def shuffled(sides: Sides) -> Sides:
    """The same tokens, each in an image and a place of chance."""
    generator = torch.Generator().manual_seed(3)

    def mix(part: Tensor) -> Tensor:
        return part.flatten(0, 1)[torch.randperm(len(part) * SIDE**2, generator=generator)].view_as(part)

    return Sides(mix(sides.train), mix(sides.held_out))


def gaussian(sides: Sides) -> Sides:
    """Noise with the mean and covariance of the tokens, alike in every place of an image."""
    flat, generator = sides.train.flatten(0, 1), torch.Generator().manual_seed(4)
    root = torch.linalg.cholesky(flat.T.cov())
    parts = (sides.train, sides.held_out)
    drawn = [torch.randn(part.shape, generator=generator) @ root.T + flat.mean(0) for part in parts]
    return Sides(*drawn)


def with_a_wrong_channel(sides: Sides) -> Sides:
    """The last channel, of small variance, has another distribution."""
    generator = torch.Generator().manual_seed(5)
    parts = [part.clone() for part in (sides.train, sides.held_out)]
    for part in parts:
        part[..., -1] = SPREAD[-1] * torch.randn(part.shape[:-1], generator=generator)
    return Sides(*parts)


def aucs(compressed: Sides) -> tuple[float, float, float]:
    real = tokens(1)
    flat = real.train.flatten(0, 1).double()
    found = whitening_of(flat.mean(0), torch.cov(flat.T, correction=0))
    white = real.mapped(*found.values()).tokens(), compressed.mapped(*found.values()).tokens()
    return (
        two_sample_auc(real.tokens(), compressed.tokens(), TOKENS),
        two_sample_auc(*white, TOKENS),
        two_sample_auc(real, compressed, GRIDS),
    )


def test_real_tokens_cannot_be_told_from_real_ones() -> None:
    assert aucs(tokens(2)) == pytest.approx((0.5, 0.5, 0.5), abs=0.05)


def test_shuffled_tokens_are_told_apart_only_as_grids() -> None:
    token, white, grid = aucs(shuffled(tokens(2)))
    assert (token, white) == pytest.approx((0.5, 0.5), abs=0.05)
    assert grid > 0.95


def test_noise_with_the_right_moments_is_told_apart_where_swd_is_low() -> None:
    compressed, real = gaussian(tokens(2)), tokens(1)
    directions = projections(DIM, 64, 0)
    projected = [sorted_projections(side.held_out.flatten(0, 1), directions) for side in (compressed, real)]
    halved = sorted_projections(real.held_out.flatten(0, 1) * 0.5, directions)
    assert sliced_wasserstein(*projected) < 0.5 * sliced_wasserstein(halved, projected[1])
    token, white, grid = aucs(compressed)
    assert min(token, white, grid) > 0.8


def test_a_wrong_channel_of_small_variance_is_seen_on_whitened_tokens() -> None:
    token, white, _ = aucs(with_a_wrong_channel(tokens(2)))
    assert white > token + 0.15
    assert white > 0.7


def test_repetition_changes_nothing_and_other_seeds_little() -> None:
    real, compressed = tokens(1).tokens(), gaussian(tokens(2)).tokens()
    first = two_sample_auc(real, compressed, TOKENS)
    torch.manual_seed(9)
    assert two_sample_auc(real, compressed, TOKENS) == first
    assert two_sample_auc(real, compressed, TOKENS, seed=1) == pytest.approx(first, abs=0.03)


def test_the_area_is_scikit_learns_with_ties() -> None:
    generator = np.random.default_rng(0)
    negative, positive = generator.integers(0, 9, 70), generator.integers(2, 12, 50)
    expected = roc_auc_score([0] * 70 + [1] * 50, np.concatenate([negative, positive]))
    assert area_under_curve(negative, positive) == pytest.approx(expected)
    assert area_under_curve(np.zeros(3), np.zeros(5)) == 0.5


def test_the_attention_reader_reads_where_tokens_lie() -> None:
    """The class is the half of the image in which the first channel is high: the mean token does not tell."""
    generator = torch.Generator().manual_seed(0)
    classes = torch.randint(2, (300,), generator=generator)
    values = torch.randn(300, 16, DIM, generator=generator) * 0.3
    left = (token_positions(4)[:, 1] < 0.5).expand(300, -1)
    values[..., 0] += torch.where(left == classes[:, None].bool(), 1.0, -1.0)

    def draw(draws: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        batch = torch.randint(200, (32,), generator=draws)
        return values[batch], token_positions(4), classes[batch]

    reader = fit_reader(draw, DIM, 2, images=200, steps=60, device=torch.device("cpu"))
    found = reader.predict(values[200:], token_positions(4))
    assert (found == classes[200:]).float().mean() > 0.95

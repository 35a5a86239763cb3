"""The mathematics of an image's own factorisation, against exact decompositions computed here."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tokconv.models.factorisation import factored, inverse_square_root, leading_directions, num_local, regressed
from tokconv.models.windows import Windows


def _tokens(count: int = 5, dim: int = 12, decay: float = 0.6) -> Tensor:
    """Images of 36 tokens with directions of their own, and variances that fall by `decay` squared."""
    generator = torch.Generator().manual_seed(0)
    rotation = torch.linalg.qr(torch.eye(dim) + 0.2 * torch.randn(count, dim, dim, generator=generator)).Q
    tokens = torch.randn(count, 36, dim, generator=generator) * decay ** torch.arange(dim) @ rotation.mT
    return tokens - tokens.mean(1, keepdim=True)


def test_the_inverse_square_root_agrees_with_an_eigendecomposition() -> None:
    factor = torch.randn(4, 9, 6, generator=torch.Generator().manual_seed(0)) * torch.logspace(0, -1.5, 6)
    gram = (factor.mT @ factor).double()
    values, vectors = torch.linalg.eigh(gram)
    expected = vectors * values.rsqrt()[:, None] @ vectors.mT
    assert torch.allclose(inverse_square_root(gram), expected, rtol=1e-4, atol=1e-4)
    assert torch.isfinite(inverse_square_root(torch.zeros(2, 3, 3))).all()


@pytest.mark.parametrize("rank", [1, 3, 6])
def test_leading_directions_span_the_leading_eigenvectors_and_are_nearest_to_the_axes(rank: int) -> None:
    tokens = _tokens()
    found = leading_directions(tokens, rank)
    assert torch.allclose(found @ found.mT, torch.eye(rank).expand(len(tokens), -1, -1), atol=5e-3)
    vectors = torch.linalg.eigh(tokens.mT @ tokens)[1].flip(2)[:, :, :rank]
    captured = (tokens @ found.mT).square().sum((1, 2)), (tokens @ vectors).square().sum((1, 2))
    assert torch.allclose(*captured, rtol=2e-3)
    # Of all bases of this subspace, the polar factor of its first rows is nearest to the axes.
    left, _, right = torch.linalg.svd(found.mT[:, :rank])
    assert torch.allclose(left @ right, torch.eye(rank).expand(len(tokens), -1, -1), atol=5e-2)


def test_regressed_agrees_with_a_solver() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(3, 40, 4, generator=generator) * torch.tensor([10.0, 1.0, 0.1, 0.01])
    targets = torch.randn(3, 40, 7, generator=generator) + inputs @ torch.randn(4, 7, generator=generator)
    expected = torch.linalg.lstsq(inputs.double(), targets.double()).solution
    assert torch.allclose((inputs @ regressed(inputs, targets)).double(), inputs.double() @ expected, atol=5e-3)
    assert torch.isfinite(regressed(torch.zeros(1, 5, 2), torch.ones(1, 5, 3))).all()


@pytest.mark.parametrize("grid", [2, 3, 4])
def test_factored_windows_are_the_tokens_again(grid: int) -> None:
    tokens, windows = _tokens() + 3, Windows(6, grid)
    parts = factored(tokens, windows, 2)
    coordinates, rest = windows.join(parts.rows.unflatten(2, (windows.window_size, -1))).tensor_split([2], 2)
    assert torch.allclose(coordinates @ parts.directions + rest + parts.outside, tokens, atol=1e-5)
    alone = factored(tokens[3:4], windows, 2)
    assert torch.allclose(alone.rows[0], parts.rows[3], atol=1e-4)


def test_images_without_variance_stay_finite() -> None:
    parts = factored(torch.ones(2, 36, 8), Windows(6, 3), 2)
    assert all(torch.isfinite(value).all() for value in parts)


def test_a_cell_has_room_for_its_share_or_the_rank_is_too_high() -> None:
    assert [num_local(rank, 8, 9) for rank in (0, 1, 3, 8)] == [8, 6, 4, 0]

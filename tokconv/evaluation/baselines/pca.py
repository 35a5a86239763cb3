"""Window PCA: the linear limit of a window, exact or randomised, with a bound on what the randomised fit misses.

D = W*C is the width of a window. The components are the leading C eigenvectors of the windows' covariance S [D, D].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokconv.evaluation.baselines.linear import LinearCodec, affine_codec

BLOCKS = 3
"""The space holds as many dimensions as components are wanted after this many products."""
TOLERANCE = 1e-3
"""It grows until it misses at most this share of the captured variance,"""
MAX_PRODUCTS = 24
"""or until this many products with the covariance; at 24 x 24 x 1024 tokens one takes about 20 s on one core."""
ROUNDING = 1e-5
"""Smaller relative differences of two captured variances in float32 are rounding."""


@dataclass(frozen=True)
class Components:
    """Leading principal components of windows.

    basis: [D, C], orthonormal columns, zero beyond the rank of the sample.
    variance: [C], of the codes, falling.
    shortfall: estimate of the share of the optimum's captured variance that the basis misses; 0 if it is exact.
    """

    basis: Tensor
    variance: Tensor
    shortfall: float


def exact_components(covariance: Tensor, dim: int) -> Components:
    """Compute the components by the full eigendecomposition of S [D, D] float64."""
    values, vectors = torch.linalg.eigh(covariance)
    return Components(vectors.flip(1)[:, :dim].clone(), values.flip(0)[:dim].clamp_min(0), 0.0)


def randomised_components(
    multiply: Callable[[Tensor], Tensor],
    *,
    width: int,
    rank: int,
    dim: int,
    dtype: torch.dtype,
    progress: Callable[[], None] = lambda: None,
) -> Components:
    """Compute them by Rayleigh-Ritz in a block Krylov space, the span of X, S X, S^2 X ... for a random block X (Musco
    and Musco 2015, arXiv:1504.05477, alg. 2): half the time of a subspace iteration, which misses fifty times as much.

    Args:
        multiply: [D, q] -> S times it.
        width: D.
        rank: upper bound of the rank of S; components beyond it are zero.
        dim: C.
        dtype: of `multiply`.
        progress: called after each product.

    The shortfall is estimated from the progress. What is missing after t products falls geometrically if there is a gap
    behind the wanted components, and otherwise, as in noise, like 1/t^2 (theorem 1 there). A sum that falls like 1/t^2
    still has t/2 times its last step ahead, a faster one has less. Tests compare the bound with exact decompositions.
    """
    wanted = min(dim, rank)
    basis = block = _random_block(width, -(-wanted // BLOCKS), dtype)
    ritz = torch.zeros(0, 0, dtype=torch.float64)
    captured, shortfall = 0.0, 1.0
    for product_number in range(1, MAX_PRODUCTS + 1):
        product = multiply(block)
        progress()
        ritz = _with_block(ritz, (basis.T @ product).double())
        if len(ritz) >= wanted:
            before, captured = captured, float(torch.linalg.eigvalsh(ritz)[-wanted:].sum())
            if captured <= 0 or len(ritz) == width:
                shortfall = 0.0 if captured <= 0 else ROUNDING
                break
            if before > 0:
                shortfall = min(1.0, max(product_number / 2 * (captured - before) / captured, ROUNDING))
            if shortfall <= TOLERANCE:
                break
        if product_number < MAX_PRODUCTS:
            block = _next_block(product[:, : width - basis.shape[1]], basis)
            basis = torch.cat([basis, block], 1)
    values, rotation = torch.linalg.eigh(ritz)
    components = torch.zeros(width, dim, dtype=torch.float64)
    components[:, :wanted] = basis @ rotation.flip(1)[:, :wanted].to(dtype)
    variance = torch.zeros(dim, dtype=torch.float64)
    variance[:wanted] = values.flip(0)[:wanted].clamp_min(0)
    return Components(components, variance, shortfall)


def sampled_components(sample_nD: Tensor, dim: int, progress: Callable[[], None] = lambda: None) -> Components:
    """Compute them from centred windows [n, D] float32, without their covariance: `randomised_components`.

    Args:
        progress: called after each product.
    """
    n, width = sample_nD.shape
    return randomised_components(
        lambda block: sample_nD.T @ (sample_nD @ block) / n,
        width=width,
        rank=min(n, width),
        dim=dim,
        dtype=torch.float32,
        progress=progress,
    )


def _random_block(width: int, columns: int, dtype: torch.dtype) -> Tensor:
    """Return orthonormal random directions [D, q], the same at every call."""
    random = torch.randn(width, min(columns, width), generator=torch.Generator().manual_seed(0))
    return torch.linalg.qr(random.to(dtype)).Q


def _with_block(ritz: Tensor, columns: Tensor) -> Tensor:
    """Return X^T S X with one more block: columns [n + q, q] are X^T S times it, X with it."""
    new = columns.shape[1]
    old = len(ritz)
    grown = torch.zeros(old + new, old + new, dtype=ritz.dtype)
    grown[:old, :old] = ritz
    grown[:, old:] = columns
    grown[old:] = columns.T
    grown[old:, old:] = (columns[old:] + columns[old:].T) / 2
    return grown


def _next_block(product: Tensor, basis: Tensor) -> Tensor:
    """Return orthonormal directions of the part of a product that is not in the span of a basis."""
    # Once more after each step: what little of the basis rounding left would be enlarged where nothing else is left.
    for _ in range(3):
        product = torch.linalg.qr(product - basis @ (basis.T @ product)).Q
    return product


@dataclass(frozen=True)
class WindowMoments:
    """Moments of standardised tokens and of windows over the training sample, float64.

    center: the mean window, [D].
    token_mean: [C].
    token_covariance: [C, C].
    pooled_covariance: of pooled tokens with whole windows, [C, D].
    """

    center: Tensor
    token_mean: Tensor
    token_covariance: Tensor
    pooled_covariance: Tensor


def window_pca(components: Components, moments: WindowMoments) -> LinearCodec:
    """Return the components as they are: uncorrelated codes of falling variance."""
    zero = torch.zeros(components.basis.shape[1], dtype=torch.float64)
    return affine_codec(components.basis.T, components.basis, center=moments.center, token_mean=zero)


def matched_window_pca(components: Components, moments: WindowMoments) -> LinearCodec:
    """Return the components in the coordinates of `matching_map`."""
    basis = components.basis
    forward, back = matching_map(
        moments.token_covariance, components.variance.diag(), moments.pooled_covariance @ basis
    )
    return affine_codec(forward @ basis.T, basis @ back, center=moments.center, token_mean=moments.token_mean)


def matching_map(token_covariance: Tensor, code_covariance: Tensor, pooled_covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the map of codes of covariance V to S^1/2 Q V^-1/2 c, with the tokens' covariance S, and its inverse.

    Every rotation Q gives these moments. This one brings each compressed token nearest to its window's mean token
    (orthogonal Procrustes), so that a compressed token still means what its place in the image means.

    Args:
        token_covariance, code_covariance: [C, C].
        pooled_covariance: of pooled tokens with codes, [C, C].
    """
    token_root, token_inverse = _root(token_covariance)
    code_root, code_inverse = _root(code_covariance)
    left, _, right = torch.linalg.svd(token_root @ pooled_covariance @ code_inverse)
    rotation = left @ right
    return token_root @ rotation @ code_inverse, code_root @ rotation.T @ token_inverse


def _root(covariance: Tensor) -> tuple[Tensor, Tensor]:
    """Return the square root and its inverse. No direction counts as having less than 1e-4 of the mean variance:
    otherwise the little that a held-out image has there would be amplified without bound."""
    values, vectors = torch.linalg.eigh(covariance)
    values = values.clamp_min(1e-4 * float(values.mean()))
    return (vectors * values.sqrt()) @ vectors.T, (vectors * values.rsqrt()) @ vectors.T

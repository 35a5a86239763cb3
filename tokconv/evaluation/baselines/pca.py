"""Window PCA: the linear limit of a window, exact or randomised, with a bound on what the randomised fit misses.

D = W*C is the width of a window. The components are the leading C eigenvectors of the windows' covariance S [D, D].
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from tokconv.evaluation.baselines.linear import LinearCodec, affine_codec

OVERSAMPLING = 16
TOLERANCE = 1e-3
"""Subspace iteration ends once it misses at most this share of the captured variance,"""
MAX_ITERATIONS = 12
"""or after this many products with the covariance; at 24 x 24 x 1024 tokens one takes about a minute on one core."""
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
    multiply: Callable[[Tensor], Tensor], *, width: int, rank: int, dim: int, dtype: torch.dtype
) -> Components:
    """Compute them by randomised subspace iteration with Rayleigh-Ritz (Halko et al. 2011, arXiv:0909.4061, alg. 4.4).

    Args:
        multiply: [D, q] -> S times it.
        width: D.
        rank: upper bound of the rank of S; components beyond it are zero.
        dim: C.
        dtype: of `multiply`.

    The shortfall is estimated from the progress of the iteration. Each iteration captures more; what is still missing
    after t of them is a sum of terms w (1 - x)^2t over directions, x their relative distance in eigenvalue from the
    captured ones. With a gap it falls geometrically; without one, as in noise, like 1/t or faster. A sum that falls
    like 1/t still has t times its last step ahead, a faster one has less: t times the last gain bounds what is missing,
    except for directions closer to each other than 1/(2t), which are worth nearly the same. A test compares the bound
    with the exact decomposition.
    """
    wanted = min(dim, rank)
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(width, min(wanted + OVERSAMPLING, width), generator=generator).to(dtype)
    basis, captured, shortfall = torch.linalg.qr(start).Q, 0.0, 1.0
    for iteration in range(1, MAX_ITERATIONS + 1):
        product = multiply(basis)
        ritz = (basis.T @ product).double()
        values, rotation = torch.linalg.eigh((ritz + ritz.T) / 2)
        before, captured = captured, float(values[-wanted:].sum())
        if captured <= 0:
            shortfall = 0.0
            break
        if iteration > 1:
            gain = max(0.0, captured - before) / captured
            shortfall = min(1.0, max(iteration * gain, ROUNDING))
        if shortfall <= TOLERANCE:
            break
        if iteration < MAX_ITERATIONS:
            basis = torch.linalg.qr(product).Q
    leading = rotation.flip(1)[:, :wanted].to(dtype)
    components = torch.zeros(width, dim, dtype=torch.float64)
    components[:, :wanted] = basis @ leading
    variance = torch.zeros(dim, dtype=torch.float64)
    variance[:wanted] = values.flip(0)[:wanted].clamp_min(0)
    return Components(components, variance, shortfall)


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

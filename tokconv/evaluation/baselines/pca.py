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
START_SHARE = 4
"""Every fourth window gives the start of the iteration on all of them, for a quarter of its cost per product."""
START_ITERATIONS = 5


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
    start: Tensor | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Components:
    """Compute them by randomised subspace iteration with Rayleigh-Ritz (Halko et al. 2011, arXiv:0909.4061, alg. 4.4).

    Args:
        multiply: [D, q] -> S times it.
        width: D.
        rank: upper bound of the rank of S; components beyond it are zero.
        dim: C.
        dtype: of `multiply`.
        start: [D, q] orthonormal, from START_ITERATIONS on a part of the windows; None: at random.
        progress: called after each product.

    The shortfall is estimated from the progress of the iteration. Each iteration captures more; what is still missing
    after t of them is a sum of terms w (1 - x)^2t over directions, x their relative distance in eigenvalue from the
    captured ones. With a gap it falls geometrically; without one, as in noise, like 1/t or faster. A sum that falls
    like 1/t still has t times its last step ahead, a faster one has less: t times the last gain bounds what is missing,
    except for directions closer to each other than 1/(2t), which are worth nearly the same. The iterations behind a
    given start count as iterations. Tests compare the bound with the exact decomposition.
    """
    wanted = min(dim, rank)
    basis, captured, shortfall = random_start(width, wanted, dtype) if start is None else start, 0.0, 1.0
    before_start = 0 if start is None else START_ITERATIONS
    for iteration in range(1, MAX_ITERATIONS + 1):
        product = multiply(basis)
        progress()
        ritz = (basis.T @ product).double()
        values, rotation = torch.linalg.eigh((ritz + ritz.T) / 2)
        before, captured = captured, float(values[-wanted:].sum())
        if captured <= 0:
            shortfall = 0.0
            break
        if iteration > 1:
            gain = max(0.0, captured - before) / captured
            shortfall = min(1.0, max((before_start + iteration) * gain, ROUNDING))
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


def sampled_components(sample_nD: Tensor, dim: int, progress: Callable[[], None] = lambda: None) -> Components:
    """Compute them from centred windows [n, D] float32, without their covariance: `randomised_components`, which starts
    where a few iterations on a part of the windows end.

    Args:
        progress: called after each product with all windows.
    """
    n, width = sample_nD.shape
    rank, start = min(n, width), None
    part = torch.randperm(n, generator=torch.Generator().manual_seed(0))[: n // START_SHARE].sort().values
    # Fewer windows span no useful start.
    if len(part) >= 2 * dim:
        rows, start = sample_nD[part], random_start(width, min(dim, rank), torch.float32)
        for _ in range(START_ITERATIONS):
            start = torch.linalg.qr(rows.T @ (rows @ start)).Q
    return randomised_components(
        lambda basis: sample_nD.T @ (sample_nD @ basis) / n,
        width=width,
        rank=rank,
        dim=dim,
        dtype=torch.float32,
        start=start,
        progress=progress,
    )


def random_start(width: int, wanted: int, dtype: torch.dtype) -> Tensor:
    """Return an orthonormal basis [D, q] of random directions, some more than wanted; the same at every call."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(width, min(wanted + OVERSAMPLING, width), generator=generator)
    return torch.linalg.qr(start.to(dtype)).Q


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

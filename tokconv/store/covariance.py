"""The covariance of a store's real tokens, and the maps to coordinates in which all directions have equal variance.

Eigenvalues of real tokens span orders of magnitude (16 to 0.004 on the bundled digits). A network on tokens as they are
hardly sees directions of small variance.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches, training_sample

VERSION = 2
"""Grows with every change of what is computed, so that older files are not read."""
SMALLEST_VARIANCE = 1e-6
"""Share of the largest variance below which a direction is treated as noise and not enlarged further."""


def token_covariance(store: TokenStore) -> Tensor:
    """Return the covariance of standardised tokens, [C, C] float64. Raises StoreError as `token_moments`."""
    return token_moments(store)[1]


def token_moments(store: TokenStore) -> tuple[Tensor, Tensor]:
    """Return mean [C] and covariance [C, C] of standardised tokens, float64, computed once beside the store.

    Raises:
        StoreError: the file is damaged.
    """
    tensors = computed_once(
        store,
        f"covariance-v{VERSION}.safetensors",
        lambda: _measure(store),
        Tensors(),
        check=has_shapes({"mean": (store.dim,), "covariance": (store.dim, store.dim)}),
    )
    return tensors["mean"], tensors["covariance"]


def _measure(store: TokenStore) -> dict[str, Tensor]:
    square, total, count = torch.zeros(store.dim, store.dim, dtype=torch.float64), torch.zeros(store.dim).double(), 0
    for tokens_BNC in standardised_batches(store, training_sample(store)):
        flat = tokens_BNC.flatten(0, 1)
        square += flat.T @ flat
        total += flat.sum(0, dtype=torch.float64)
        count += len(flat)
    mean = total / count
    return {"mean": mean, "covariance": square / count - torch.outer(mean, mean)}


def whitening(covariance: Tensor, power: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return the maps into whitened coordinates and back, each [C, C] float32 and applied from the right.

    With eigenvectors V and eigenvalues l, the first is V l^(-power / 2) V^T, scaled so that the average variance stays
    1; the second is its inverse. A power of 0 changes nothing; with 1 all directions have variance 1.

    Args:
        covariance: [C, C] of standardised tokens.
        power: from 0 to 1.
    """
    variances, axes = torch.linalg.eigh(covariance.double())
    variances = variances.clamp_min(SMALLEST_VARIANCE * float(variances.max()))
    spread = variances ** (power / 2) * (variances ** (1 - power)).mean().sqrt()
    return ((axes / spread) @ axes.T).float().contiguous(), ((axes * spread) @ axes.T).float().contiguous()

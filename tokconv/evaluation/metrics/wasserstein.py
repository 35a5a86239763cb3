"""Sliced Wasserstein-2 distance between two samples of tokens (Bonneel et al. 2015)."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def projections(dim: int, count: int, seed: int) -> Tensor:
    """Return [dim, count] float32 unit vectors, uniform on the sphere, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)


def sorted_projections(sample: Tensor, directions: Tensor) -> Tensor:
    """Project a sample [n, C] on directions [C, d]; return [d, n], ascending. Numpy's sort is vectorised."""
    return torch.from_numpy(np.sort((directions.T @ sample.T).numpy(), axis=1))


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Return the sliced Wasserstein-2 distance between two samples of equal size (Bonneel et al. 2015).

    It is the root of the mean, over directions and order statistics, of the squared difference of sorted projections.

    Args:
        a, b: [d, n], `sorted_projections` of each sample on the same directions.
    """
    return float((a - b).square().mean(dtype=torch.float64).sqrt())

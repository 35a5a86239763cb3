"""Critic-free figures on plain tensors; `tokconv.evaluate` fixes samples, seeds and sizes around them."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


@dataclass
class Fidelity:
    """Sums for fvu and both cosines, fed batch by batch.

    fvu, the fraction of variance unexplained: sum |reconstructed - tokens|^2 / sum |tokens - mean|^2, 0 for perfect,
    1 for predicting the training mean.

    Args:
        mean: [C], per-channel mean of the training split.
    """

    mean: Tensor
    error: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    deviation: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    cosine_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    centered_sum: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    count: int = 0

    def update(self, reconstructed: Tensor, tokens: Tensor) -> None:
        """Add a batch, both [B, N, C] float32, in token units (not standardised)."""
        mean = self.mean.to(tokens.device)
        self.error += (reconstructed - tokens).square().sum(dtype=torch.float64).cpu()
        self.deviation += (tokens - mean).square().sum(dtype=torch.float64).cpu()
        cosine = F.cosine_similarity(reconstructed, tokens, dim=-1)
        centered = F.cosine_similarity(reconstructed - mean, tokens - mean, dim=-1)
        self.cosine_sum += cosine.sum(dtype=torch.float64).cpu()
        self.centered_sum += centered.sum(dtype=torch.float64).cpu()
        self.count += cosine.numel()

    @property
    def fvu(self) -> float:
        return float(self.error / self.deviation)

    @property
    def cosine(self) -> float:
        return float(self.cosine_sum / self.count)

    @property
    def cosine_centered(self) -> float:
        return float(self.centered_sum / self.count)


def projections(dim: int, count: int, seed: int) -> Tensor:
    """[dim, count] float32 unit vectors, uniform on the sphere, the same on every machine."""
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(dim, count, generator=generator), dim=0)


def sorted_projections(sample: Tensor, directions: Tensor) -> Tensor:
    """[n, C] and [C, d] -> [d, n]: the sample projected on each direction, ascending. Numpy's sort is vectorised."""
    return torch.from_numpy(np.sort((directions.T @ sample.T).numpy(), axis=1))


def sliced_wasserstein(a: Tensor, b: Tensor) -> float:
    """Sliced Wasserstein-2 distance between two samples of equal size (Bonneel et al. 2015).

    sqrt of the mean, over directions and order statistics, of the squared difference of the sorted projections.

    Args:
        a, b: [d, n], `sorted_projections` of each sample on the same directions.
    """
    return float((a - b).square().mean(dtype=torch.float64).sqrt())

"""How well tokens are reconstructed: the share of their variance that is lost, and two cosines."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm


@dataclass
class Fidelity:
    """Sums for fvu and both cosines, added batch by batch.

    fvu, the fraction of variance unexplained: sum |reconstructed - tokens|^2 / sum |tokens - mean|^2, 0 for perfect,
    1 for predicting the training mean.

    Args:
        mean: [C] float32, mean token of the training split.
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
        centered, centered_tokens = reconstructed - mean, tokens - mean
        difference = reconstructed - tokens
        self.error += vecdot(difference, difference).sum(dtype=torch.float64).cpu()
        self.deviation += vecdot(centered_tokens, centered_tokens).sum(dtype=torch.float64).cpu()
        cosine = _cosine(reconstructed, tokens)
        self.cosine_sum += cosine.sum(dtype=torch.float64).cpu()
        self.centered_sum += _cosine(centered, centered_tokens).sum(dtype=torch.float64).cpu()
        self.count += cosine.numel()

    @property
    def fvu(self) -> float:
        """Fraction of variance unexplained."""
        return float(self.error / self.deviation)

    @property
    def cosine(self) -> float:
        """Mean cosine of reconstructed and real tokens."""
        return float(self.cosine_sum / self.count)

    @property
    def cosine_centered(self) -> float:
        """The same with the mean token removed."""
        return float(self.centered_sum / self.count)


def _cosine(a_BNC: Tensor, b_BNC: Tensor) -> Tensor:
    """Return cosines [B, N], 0 for a zero vector; `torch.cosine_similarity` takes four times as long."""
    norms = vector_norm(a_BNC, dim=-1).clamp_min(1e-8) * vector_norm(b_BNC, dim=-1).clamp_min(1e-8)
    return vecdot(a_BNC, b_BNC) / norms

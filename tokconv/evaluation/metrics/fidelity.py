"""How well tokens are reconstructed: the share of their variance that is lost, and two cosines."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm


class Fidelity:
    """Sums for fvu and both cosines, added batch by batch.

    fvu, the fraction of variance unexplained: sum |reconstructed - tokens|^2 / sum |tokens - mean|^2, 0 for perfect,
    1 for predicting the training mean. The centred cosine is that of tokens with the mean token removed.

    Args:
        mean: [C] float32, mean token of the training split.
    """

    def __init__(self, mean: Tensor) -> None:
        self._mean, self._sums, self._count = mean, torch.zeros(4, dtype=torch.float64), 0

    def update(self, reconstructed: Tensor, tokens: Tensor) -> None:
        """Add a batch, both [B, N, C] float32, in token units (not standardised)."""
        mean = self._mean.to(tokens.device)
        centered, centered_tokens = reconstructed - mean, tokens - mean
        difference = reconstructed - tokens
        parts = (
            vecdot(difference, difference),
            vecdot(centered_tokens, centered_tokens),
            _cosine(reconstructed, tokens),
            _cosine(centered, centered_tokens),
        )
        self._sums += torch.stack([part.sum(dtype=torch.float64) for part in parts]).cpu()
        self._count += parts[0].numel()

    def figures(self) -> dict[str, float]:
        """Return the figures of all batches."""
        error, deviation, cosine, centered = self._sums
        return {
            "val/fvu": float(error / deviation),
            "val/cosine": float(cosine / self._count),
            "val/cosine_centered": float(centered / self._count),
        }


def _cosine(a_BNC: Tensor, b_BNC: Tensor) -> Tensor:
    """Return cosines [B, N], 0 for a zero vector; `torch.cosine_similarity` takes four times as long."""
    norms = vector_norm(a_BNC, dim=-1).clamp_min(1e-8) * vector_norm(b_BNC, dim=-1).clamp_min(1e-8)
    return vecdot(a_BNC, b_BNC) / norms

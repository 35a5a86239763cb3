"""Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon/) for stacked matrices.

The momentum M of a matrix is replaced by the nearest orthogonal matrix, by Newton-Schulz iterations on M / |M|:

    X <- a X + (b A + c A A) X   with   A = X X^T

so that every direction of the input is learned from at the same pace, also those of small variance, which Adam hardly
sees. `torch.optim.Muon` takes plain matrices only; here a leading axis holds one matrix per network.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

MOMENTUM = 0.95
COEFFICIENTS, ITERATIONS = (3.4445, -4.7750, 2.0315), 5


def orthogonalised(matrices_Sab: Tensor) -> Tensor:
    """Return matrices with the same singular vectors and singular values near 1."""
    transposed = matrices_Sab.shape[1] > matrices_Sab.shape[2]
    found = matrices_Sab.mT if transposed else matrices_Sab
    found = found / (torch.linalg.matrix_norm(found, keepdim=True) + 1e-7)
    a, b, c = COEFFICIENTS
    for _ in range(ITERATIONS):
        square = found @ found.mT
        found = a * found + (b * square + c * square @ square) @ found
    return found.mT if transposed else found


class Muon:
    """Muon with Nesterov momentum.

    Args:
        weights: [S, a, b] each, leaves that require gradients.
    """

    def __init__(self, weights: Sequence[Tensor]) -> None:
        self._weights = weights
        self._momenta = [torch.zeros_like(weight) for weight in weights]

    @torch.no_grad()
    def step(self, rate: float) -> None:
        """Update the weights by their gradients, and forget those."""
        for weight, momentum in zip(self._weights, self._momenta, strict=True):
            assert weight.grad is not None
            momentum.lerp_(weight.grad, 1 - MOMENTUM)
            direction = orthogonalised(weight.grad.lerp(momentum, MOMENTUM))
            weight.sub_(direction, alpha=rate * max(1.0, weight.shape[2] / weight.shape[1]) ** 0.5)
            weight.grad = None

"""Least squares from sums over batches: an affine map, with one bias or with one bias per position."""

from __future__ import annotations

import torch
from torch import Tensor

RIDGE = 1e-6
"""Share of the inputs' average variance: enough for directions without variance, too little to change a figure."""


class Regression:
    """Ridge least squares y = weight x + bias, in float64 sums.

    Inputs and outputs may be at P positions, [n, P, in] and [n, P, out]: then positions share the weight, [out, in],
    and each has its own bias, [P, out]. Covariances are of deviations from the mean of the position.

    Args:
        in_dim, out_dim: widths.
        positions: P.
    """

    def __init__(self, in_dim: int, out_dim: int, positions: int = 1) -> None:
        self.count = 0
        self.in_sum = torch.zeros(positions, in_dim, dtype=torch.float64)
        self.out_sum = torch.zeros(positions, out_dim, dtype=torch.float64)
        self._square = torch.zeros(in_dim, in_dim, dtype=torch.float64)
        self._cross = torch.zeros(in_dim, out_dim, dtype=torch.float64)

    def update(self, x_nPI: Tensor, y_nPO: Tensor) -> None:
        """Add a batch of float32 inputs and outputs."""
        self.count += len(x_nPI)
        self.in_sum += x_nPI.sum(0, dtype=torch.float64)
        self.out_sum += y_nPO.sum(0, dtype=torch.float64)
        x, y = x_nPI.flatten(0, 1), y_nPO.flatten(0, 1)
        self._square += x.T @ x
        self._cross += x.T @ y

    @property
    def in_mean(self) -> Tensor:
        """Mean input, [P, in] float64."""
        return self.in_sum / self.count

    @property
    def out_mean(self) -> Tensor:
        """Mean output, [P, out] float64."""
        return self.out_sum / self.count

    @property
    def cross_covariance(self) -> Tensor:
        """Covariance of inputs with outputs, averaged over positions, [in, out] float64."""
        return self._centred(self._cross, self.out_mean)

    def solve(self) -> tuple[Tensor, Tensor]:
        """Return weight [out, in] and bias [P, out], float64."""
        covariance = self._centred(self._square, self.in_mean)
        covariance.diagonal().add_(RIDGE * covariance.diagonal().mean().clamp_min(torch.finfo(torch.float32).tiny))
        weight = torch.linalg.solve(covariance, self.cross_covariance).T
        return weight, self.out_mean - self.in_mean @ weight.T

    def _centred(self, sums: Tensor, mean: Tensor) -> Tensor:
        return (sums / self.count - self.in_mean.T @ mean) / len(mean)

"""Squared maximum mean discrepancy between two samples of tokens, unbiased (Gretton et al. 2012, JMLR 13, eq. 3).

    mean_{i != j} k(x_i, x_j) + mean_{i != j} k(y_i, y_j) - 2 mean_{i, j} k(x_i, y_j)

k is the mean of three Gaussian kernels exp(-d^2 / (2 b^2)), with b half, one and two times the median distance within
the reference y: the ruler depends on the real tokens alone, not on the measured ones. Unbiased means that two samples
of one distribution have 0 on average, and so a negative value about half of the time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

NUM_KERNELS = 3
WIDEST = 2.0
"""Bandwidth of the widest kernel in median distances; the next ones have half of it and a quarter."""
MEDIAN_TOKENS = 1024
"""The median distance is taken within the first tokens of the reference: half a million pairs."""
ROWS = 256
"""Rows of the kernel matrix in memory at a time: 4 MB at 4,096 columns. On CPUs 1.2 to 1.3 times as fast as 64; more
rows gain nothing."""


@dataclass(frozen=True)
class MmdReference:
    """The real sample, with those terms of eq. 3 that depend on it alone.

    sample: [n, C] float32.
    median: median distance, in the sample's units.
    within: mean kernel of its pairs.
    """

    sample: Tensor
    median: float
    within: float

    @classmethod
    def of(cls, sample_nC: Tensor) -> MmdReference:
        """Measure the terms of a sample. Raises ValueError for fewer than two tokens."""
        few = sample_nC[:MEDIAN_TOKENS]
        if len(few) < 2:
            raise ValueError(f"a maximum mean discrepancy needs two tokens, got {len(few)}")
        # For tokens that are all the same, any ruler will do.
        median = float(torch.pdist(few).median()) or 1.0
        return cls(sample_nC, median, mean_within(sample_nC, median))

    def squared_distance(self, tokens_mC: Tensor) -> float:
        """Return the figure of at least two tokens [m, C] float32; m may differ from the reference's n."""
        between = mean_between(tokens_mC, self.sample, self.median)
        return mean_within(tokens_mC, self.median) + self.within - 2 * between


def mean_between(a_mC: Tensor, b_nC: Tensor, median: float) -> float:
    """Return the mean kernel of all pairs of a token of `a` and a token of `b`."""
    kernels = _Kernels(b_nC, median)
    total = sum(kernels.sums(rows).sum().item() for rows in a_mC.split(ROWS))
    return total / (len(a_mC) * len(b_nC) * NUM_KERNELS)


def mean_within(a_nC: Tensor, median: float) -> float:
    """Return the mean kernel of all pairs of two different tokens."""
    kernels, total, count = _Kernels(a_nC, median), 0.0, len(a_nC)
    for first in range(0, count, ROWS):
        rows = a_nC[first : first + ROWS]
        square = kernels.sums(rows, first, first + len(rows)).sum().item()
        # The matrix is symmetric: what is right of the diagonal blocks also counts for what is below them.
        right = kernels.sums(rows, first + len(rows)).sum().item() if first + len(rows) < count else 0.0
        total += square + 2 * right
    return (total - NUM_KERNELS * count) / (count * (count - 1) * NUM_KERNELS)


class _Kernels:
    """The kernels between rows and the tokens of a sample, summed."""

    def __init__(self, sample_nC: Tensor, median: float) -> None:
        # Distances do not depend on the origin, but their rounding errors are smallest near it.
        self._center = sample_nC.mean(0)
        self._unit = (2**0.5) * WIDEST * median
        scaled = (sample_nC - self._center) / self._unit
        self._columns = 2 * scaled.T.contiguous()
        self._squares = scaled.square().sum(1)

    def sums(self, rows_rC: Tensor, first: int = 0, end: int | None = None) -> Tensor:
        """Return [r] float64: for every row, the sum over the kernels and over the tokens from first to end."""
        scaled = (rows_rC - self._center) / self._unit
        kernel = torch.addmm(-self._squares[None, first:end], scaled, self._columns[:, first:end])
        kernel.sub_(scaled.square().sum(1)[:, None]).exp_()
        sums = kernel.sum(1)
        for _ in range(NUM_KERNELS - 1):
            # Half the bandwidth is the fourth power of the kernel, which is cheaper than another exponential.
            kernel.square_().square_()
            sums += kernel.sum(1)
        return sums.double()

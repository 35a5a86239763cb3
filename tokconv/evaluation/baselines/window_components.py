"""Window PCA of wide windows in few coordinates: fast, and exact but for what those coordinates leave out.

A window of W tokens of d channels has W*d numbers, thousands of them, of which a code keeps a few hundred. Nearly all
of what these hold lies in few products of one spatial and one channel direction (a separable basis, like that of a 2D
cosine transform). So the covariance is collected, and decomposed, in those of the largest variance alone.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokconv.evaluation.baselines.pca import exact_components

LEAST_COORDINATES = 1024
COORDINATES_PER_COMPONENT = 6
"""At 6 x 6 cells of DINOv2's tokens of photographs, the error of the factorisation is 0.3 % above that in all
coordinates."""
PER_COMPONENT_IN_A_CHOICE = 3
"""The same between ranks, of which only the order counts: a third of the time."""


class WindowComponents:
    """The leading components of windows, from their moments in the coordinates of the largest variance.

    Args:
        sample_nWd: some windows, float32, which choose the coordinates.
        wanted: m, the components.
        per_component: coordinates for each of them, unless that is fewer than LEAST_COORDINATES.
    """

    def __init__(self, sample_nWd: Tensor, wanted: int, per_component: int = COORDINATES_PER_COMPONENT) -> None:
        size, dim = sample_nWd.shape[1:]
        self.wanted, width = wanted, size * dim
        kept = min(width, max(LEAST_COORDINATES, per_component * wanted))
        self._spatial: Tensor | None = None
        self._kept = torch.arange(width)
        if kept < width:
            centred = sample_nWd - sample_nWd.mean(0)
            across = centred.transpose(0, 1).flatten(1)
            self._spatial = torch.linalg.eigh((across @ across.T).double())[1].float()
            variance = (self._spatial.T @ centred).square().mean(0).flatten()
            self._kept = variance.topk(kept).indices.sort().values
        self._shape = (size, dim)
        self.count, self._sum = 0, torch.zeros(width, dtype=torch.float64)
        self._square = torch.zeros(kept, kept, dtype=torch.float64)

    def update(self, windows_nWd: Tensor) -> None:
        """Add windows, float32."""
        flat = windows_nWd.flatten(1)
        self._sum += flat.sum(0, dtype=torch.float64)
        self.count += len(flat)
        if self._spatial is not None:
            flat = (self._spatial.T @ windows_nWd).flatten(1)[:, self._kept]
        self._square += flat.T @ flat

    @property
    def mean(self) -> Tensor:
        """The mean window, [W d] float64."""
        return self._sum / self.count

    def basis(self) -> Tensor:
        """Return the components in columns, orthonormal, strongest first: [W d, m] float64."""
        mean = self.mean
        if self._spatial is not None:
            mean = (self._spatial.double().T @ mean.unflatten(0, self._shape)).flatten()[self._kept]
        found = exact_components(self._square / self.count - torch.outer(mean, mean), self.wanted).basis
        if self._spatial is None:
            return found
        separable = torch.zeros(len(self._sum), self.wanted, dtype=torch.float64)
        separable[self._kept] = found
        return (self._spatial.double() @ separable.unflatten(0, self._shape).flatten(1)).view(len(self._sum), -1)

"""Images as vectors and their Gram matrix: all N * C standardised values of an image, or a sketch of them.

The sketch (Charikar et al. 2002, "Finding frequent items in data streams"; signed hashing) adds each value, with a
random sign, to a random one of fewer places. Inner products and so distances keep their expectation, with a relative
error of about 1 / sqrt(places): 0.8 % of the lengths at 16,384. All images share one sketch, so that what two feature
sets of the same images have in common does not depend on it.
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128


class ImageFeatures:
    """Features of images, added batch by batch; [n, places] float32 in memory, never all tokens.

    Use one object again after `restart`: new memory of this size costs more than a tenth of an evaluation.

    Args:
        num_images: n.
        num_values: N * C.
        limit: largest N * C that is not sketched.
        places: of the sketch.
        seed: of the sketch.
        device: of the features.
    """

    def __init__(
        self, num_images: int, num_values: int, *, limit: int, places: int, seed: int, device: torch.device
    ) -> None:
        self._hash: tuple[Tensor, Tensor] | None = None
        if num_values > limit:
            generator = torch.Generator().manual_seed(seed)
            place = torch.randint(places, (num_values,), generator=generator)
            sign = torch.randint(2, (num_values,), generator=generator).float() * 2 - 1
            self._hash = place.to(device), sign.to(device)
        width = num_values if self._hash is None else places
        self._features = torch.empty(num_images, width, device=device)
        self._count = 0

    def restart(self) -> None:
        """Forget all images."""
        self._count = 0

    def add(self, standardised_BNC: Tensor) -> None:
        """Add the next images."""
        rows = self._features[self._count : self._count + len(standardised_BNC)]
        values = standardised_BNC.flatten(1).to(rows.device)
        if self._hash is None:
            rows.copy_(values)
        else:
            place, sign = self._hash
            rows.zero_().index_add_(1, place, values * sign)
        self._count += len(rows)

    def gram(self) -> Tensor:
        """Return the Gram matrix, [n, n] float64 on the CPU, symmetric."""
        size = len(self._features)
        gram = torch.zeros(size, size, dtype=torch.float64)
        for first in range(0, size, BLOCK):
            # Only the diagonal and what is right of it.
            block = self._features[first : first + BLOCK] @ self._features[first:].T
            gram[first : first + BLOCK, first:] = block.double().cpu()
            gram[first:, first : first + BLOCK] = block.T.double().cpu()
        return gram

"""How far compressed tokens are from real tokens as a distribution: the figures swd and mmd."""

from __future__ import annotations

from torch import Tensor

from tokconv.evaluation import protocol
from tokconv.evaluation.heldout import Batch, RowSample, Sample
from tokconv.evaluation.metrics.mmd import MmdReference
from tokconv.evaluation.metrics.wasserstein import projections, sliced_wasserstein, sorted_projections


class TokenDistances:
    """The figures swd and, if there is a reference for it, mmd of a codec, from batches in the order of the images."""

    def __init__(self, sample: Sample, mmd: MmdReference | None) -> None:
        self.sample, self.mmd = sample, mmd
        self._directions = projections(sample.reference.shape[1], protocol.NUM_PROJECTIONS, protocol.SEED)
        self._reference = sorted_projections(sample.reference, self._directions)
        self.start()

    def start(self) -> None:
        """Forget all tokens."""
        self._compared = RowSample(self.sample.compared, self.sample.reference.shape[1])

    def add(self, batch: Batch) -> None:
        """Add the compressed tokens of the next images."""
        self._compared.add(batch.cells)

    def figures(self) -> dict[str, float]:
        """Return the figures of the compressed tokens of all images."""
        return self._of(self._compared.values)

    def pairs(self, num_cells: int) -> tuple[Tensor, Tensor, Tensor]:
        """Return one real token per window and the compressed one, both [n, C], and the image [n] they are of."""
        return self.sample.one_per_window, self._compared.values, self.sample.compared // num_cells

    def real_figures(self) -> dict[str, float]:
        """Return what one real token per window gets: the floors."""
        return {f"{name}_floor": value for name, value in self._of(self.sample.one_per_window).items()}

    def _of(self, tokens_nC: Tensor) -> dict[str, float]:
        projected = sorted_projections(tokens_nC, self._directions)
        figures = {"val/swd": sliced_wasserstein(projected, self._reference)}
        # A single compressed token in all has no pairs.
        if self.mmd is not None and len(tokens_nC) > 1:
            figures["val/mmd"] = self.mmd.squared_distance(tokens_nC[: protocol.MAX_MMD_TOKENS])
        return figures

"""What readers of tokens still recognise: the figures of the linear probe and of the frozen reader.

The probe reads the class of an image from its reconstructed tokens, the reader from its compressed tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokconv.evaluation import heldout
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.probe import Probe, Reader, labelled_sample, linear_probe
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore


def count_labelled(store: TokenStore, images: Tensor) -> int:
    """Return how many of these images have a class; 0 if the probe has none to learn from either."""
    if store.labels is None or not len(labelled_sample(store)):
        return 0
    return int((store.labels[images] >= 0).sum())


class ReaderAccuracy:
    """Accuracies of the probe and of the reader on what a codec gives, over the held-out images that have a class.

    Args:
        store: has labels.
        num_labelled: held-out images with a class, at least one.
        windows: of the output grid.
        device: where the tokens are.
    """

    def __init__(self, store: TokenStore, num_labelled: int, windows: Windows, device: torch.device) -> None:
        self.store, self.num_labelled, self.device = store, num_labelled, device
        self.probe = linear_probe(store).to(device)
        self.reader = self.probe.reader(windows)
        self.start()

    def start(self) -> None:
        """Forget all images."""
        self._probe_hits = self._reader_hits = 0

    def add(self, batch: Batch) -> None:
        """Classify the next images."""
        self._probe_hits += self._hits(self.probe, batch.standardised, batch.images)
        self._reader_hits += self._hits(self.reader, batch.cells, batch.images)

    def figures(self, real_accuracy: float) -> dict[str, float]:
        """Return the accuracies, also as shares of the probe's accuracy on real tokens."""
        figures = {}
        for name, hits in (("probe", self._probe_hits), ("reader", self._reader_hits)):
            figures[f"val/{name}_accuracy"] = accuracy = hits / self.num_labelled
            # If the probe reads nothing from real tokens, there is no accuracy to keep.
            if real_accuracy > 0:
                figures[f"val/{name}_kept"] = accuracy / real_accuracy
        return figures

    def real_accuracies(self, images: Tensor, cells: Tensor) -> tuple[float, float]:
        """Return the accuracy of the probe on real tokens, and of the reader on one real token per window.

        Args:
            images: [n] int64, all held-out images.
            cells: [n, K] int64, the token of each window.
        """
        full, sampled = 0, 0
        batches, cells_of_batches = images.split(heldout.BATCH), cells.split(heldout.BATCH)
        for batch, chosen, read_tokens in zip(batches, cells_of_batches, self.store.batches(batches), strict=True):
            tokens = self.store.standardise(read_tokens.to(self.device))
            one_each = tokens.gather(1, chosen[..., None].expand(-1, -1, self.store.dim).to(self.device))
            full += self._hits(self.probe, tokens, batch)
            sampled += self._hits(self.reader, one_each, batch)
        return full / self.num_labelled, sampled / self.num_labelled

    def _hits(self, classifier: Probe | Reader, standardised: Tensor, images: Tensor) -> int:
        assert self.store.labels is not None
        return int((classifier.predict(standardised).cpu() == self.store.labels[images]).sum())

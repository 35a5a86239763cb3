"""What readers of tokens still recognise: the figures of the linear probe and of three readers.

The probe reads the class of an image from its reconstructed tokens. The readers read it from compressed tokens: the
attention reader and the linear reader learned on real tokens and are frozen, the adapted reader is the attention reader
trained on the compressed tokens of the training images.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.attention_reader import (
    ADAPTED_STEPS,
    BATCH,
    FROZEN_STEPS,
    AttentionReader,
    fit_reader,
    some_positions,
    token_positions,
    window_positions,
)
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.probe import labelled_sample, linear_probe
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore

ACCURACY = "accuracy"
"""Beside the weights of the frozen reader: its accuracy on all tokens of the held-out images, float64."""


def count_labelled(store: TokenStore, images: Tensor) -> int:
    """Return how many of these images have a class; 0 if the probe has none to learn from either."""
    if store.labels is None or not len(labelled_sample(store)):
        return 0
    return int((store.labels[images] >= 0).sum())


@dataclass(frozen=True)
class FrozenReader:
    """The attention reader of real tokens, and its accuracy on all tokens of the held-out images."""

    reader: AttentionReader
    accuracy: float


def frozen_reader(store: TokenStore, images: Tensor, device: torch.device) -> FrozenReader:
    """Return the store's attention reader, trained at the first call per store (one process trains, others wait).

    Args:
        store: has labels.
        images: [n] int64, the held-out images.

    Raises:
        StoreError: the file of the reader is damaged.
    """
    reader = AttentionReader(store.dim, len(store.class_names))
    shapes = {name: tuple(weight.shape) for name, weight in reader.state_dict().items()}
    name = f"attention-reader-p{protocol.PROTOCOL}.safetensors"
    check = has_shapes({**shapes, ACCURACY: ()})
    tensors = computed_once(store, name, lambda: _train_frozen(store, images), Tensors(), check=check)
    reader.load_state_dict({weight: tensors[weight] for weight in shapes})
    return FrozenReader(reader.eval().requires_grad_(False).to(device), float(tensors[ACCURACY]))


def can_be_read(store: TokenStore, images: Tensor) -> bool:
    """Return whether a reader can keep anything: the frozen one, trained at the first call per store, recognises one of
    these held-out images [n] int64 from its real tokens."""
    return count_labelled(store, images) > 0 and frozen_reader(store, images, torch.device("cpu")).accuracy > 0


def _train_frozen(store: TokenStore, images: Tensor) -> Mapping[str, Tensor]:
    assert store.labels is not None
    labels, learned, positions = store.labels, labelled_sample(store), token_positions(store.token_grid)

    def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        batch = learned[torch.randint(len(learned), (BATCH,), generator=generator)]
        read = some_positions(store.num_tokens, generator)
        return store.standardise(store.tokens(batch)[:, read]), positions[read], labels[batch]

    classes, cpu = len(store.class_names), torch.device("cpu")
    reader = fit_reader(draw, store.dim, classes, images=len(learned), steps=FROZEN_STEPS, device=cpu)
    images, hits = images[labels[images] >= 0], 0
    batches = images.split(heldout.BATCH)
    for batch, tokens in zip(batches, store.batches(batches), strict=True):
        hits += int((reader.predict(store.standardise(tokens), positions) == labels[batch]).sum())
    return {**reader.state_dict(), ACCURACY: torch.tensor(hits / max(1, len(images)), dtype=torch.float64)}


class ReaderAccuracy:
    """Accuracies of the probe and of the readers on what a codec gives, over the held-out images that have a class.

    Args:
        store: has labels.
        images: [n] int64, all held-out images.
        num_labelled: how many of them have a class, at least one.
        windows: of the output grid.
        device: where the tokens are.
    """

    def __init__(
        self, store: TokenStore, images: Tensor, num_labelled: int, windows: Windows, device: torch.device
    ) -> None:
        self.store, self.num_labelled, self.device = store, num_labelled, device
        self.probe = linear_probe(store).to(device)
        self.linear = self.probe.reader(windows)
        self.frozen = frozen_reader(store, images, device)
        self._positions = window_positions(windows).to(device)
        self.start()

    def start(self, adapted: AttentionReader | None = None) -> None:
        """Forget all images. An adapted reader reads the next ones as well."""
        self._adapted = adapted
        self._hits = dict.fromkeys(["probe", "linear_reader", "reader", *(["adapted"] if adapted else [])], 0)

    def add(self, batch: Batch) -> None:
        """Classify the next images."""
        found = {"probe": self.probe.predict(batch.standardised), **self._read(batch.cells)}
        if self._adapted is not None:
            found["adapted"] = self._adapted.predict(batch.cells, self._positions)
        for name, classes in found.items():
            self._hits[name] += self._right(classes, batch.images)

    def figures(self, probe_accuracy: float) -> dict[str, float]:
        """Return the accuracies, also as shares of the accuracy on all real tokens: of the probe, for the linear
        reader too, and of the frozen attention reader, for the adapted one too."""
        figures = {}
        for name, hits in self._hits.items():
            figures[f"val/{name}_accuracy"] = accuracy = hits / self.num_labelled
            real = probe_accuracy if name in ("probe", "linear_reader") else self.frozen.accuracy
            # What reads nothing from real tokens has no accuracy to keep.
            if real > 0:
                figures[f"val/{name}_kept"] = accuracy / real
        return figures

    def adapt(self, images: Tensor, cells_nKC: Tensor) -> AttentionReader | None:
        """Return a reader trained on these images' compressed tokens, standardised; None if none has a class."""
        assert self.store.labels is not None
        labels = self.store.labels[images]
        learned = (labels >= 0).nonzero().flatten()
        if not len(learned):
            return None

        def draw(generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
            batch = learned[torch.randint(len(learned), (BATCH,), generator=generator)]
            read = some_positions(cells_nKC.shape[1], generator).to(self.device)
            tokens = cells_nKC[batch.to(cells_nKC.device)].to(self.device)[:, read]
            return tokens, self._positions[read], labels[batch].to(self.device)

        classes = len(self.store.class_names)
        return fit_reader(draw, self.store.dim, classes, images=len(learned), steps=ADAPTED_STEPS, device=self.device)

    def real_accuracies(self, images: Tensor, cells: Tensor) -> dict[str, float]:
        """Return the accuracy of the probe on real tokens ("full"), and of both frozen readers on one real token per
        window ("reader", "linear_reader").

        Args:
            images: [n] int64, all held-out images.
            cells: [n, K] int64, the token of each window.
        """
        hits = {"full": 0, "linear_reader": 0, "reader": 0}
        batches, cells_of_batches = images.split(heldout.BATCH), cells.split(heldout.BATCH)
        for batch, chosen, read_tokens in zip(batches, cells_of_batches, self.store.batches(batches), strict=True):
            tokens = self.store.standardise(read_tokens.to(self.device))
            one_each = tokens.gather(1, chosen[..., None].expand(-1, -1, self.store.dim).to(self.device))
            for name, classes in {"full": self.probe.predict(tokens), **self._read(one_each)}.items():
                hits[name] += self._right(classes, batch)
        return {name: count / self.num_labelled for name, count in hits.items()}

    def _read(self, cells_BKC: Tensor) -> dict[str, Tensor]:
        return {
            "linear_reader": self.linear.predict(cells_BKC),
            "reader": self.frozen.reader.predict(cells_BKC, self._positions),
        }

    def _right(self, classes: Tensor, images: Tensor) -> int:
        assert self.store.labels is not None
        return int((classes.cpu() == self.store.labels[images]).sum())

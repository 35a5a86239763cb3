"""The fixed evaluation protocol: the same held-out tokens, seeds and sizes for every trial and every baseline.

Critic-free on purpose: a critic's own distance changes its ruler with lambda_gp and n_critic. Sizes and seeds are in
`tokconv.evaluation.protocol`. Each group of figures is computed in a module of its own: `metrics/fidelity.py`,
`distances.py`, `relations.py`, `readers.py` and `likeness.py`.

There are two tiers. The cheap figures exist after every epoch. The full ones add those that train networks on
compressed tokens of training images, the two-sample tests and the adapted reader: trials have them after their last
epoch, confirmations and baselines always.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

import torch
from torch import Tensor

from tokconv.errors import ConfigError, StoreError
from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.codecs import Codec, ImageCodec, compress_only, run_codec
from tokconv.evaluation.distances import TokenDistances
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.likeness import TokenLikeness, compared_images, enough_images, quick_auc
from tokconv.evaluation.metrics.fidelity import Fidelity
from tokconv.evaluation.metrics.mmd import MmdReference
from tokconv.evaluation.probe import FIT_VERSION
from tokconv.evaluation.readers import ReaderAccuracy, count_labelled
from tokconv.evaluation.relations import ImageRelations
from tokconv.evaluation.two_sample import Sides
from tokconv.models.windows import Windows, compression_ratio
from tokconv.store.cache import JsonFigures, Rows, computed_once
from tokconv.store.reader import TokenStore

ROUNDING = 1e-9
"""A smaller fvu is rounding: the quotient of two of them means nothing."""

Figures = dict[str, float]


class Measure(Protocol):
    """What collects batches of the held-out images, in their order."""

    def add(self, batch: Batch) -> None:
        """Add the next images."""


class Evaluator:
    """The protocol for one store and one output grid; built once, used every epoch.

    Memory for 2,048 images at L/14-336 (576 x 1024): image features 0.13 GB, compared tokens 0.03 GB per sample, their
    projections 0.02 GB, a batch of 16 images 0.04 GB and about five times that while it is worked on.

    Args:
        store: its validation split is evaluated, at most 2,048 images of it.
        output_grid: k.
        device: where the networks are.

    Attributes:
        real: what real tokens get in place of a codec's: floors, halves, samples.
        probe_full: the probe's accuracy on real images; 0 without labels.
    """

    def __init__(self, store: TokenStore, output_grid: int, device: torch.device | None = None) -> None:
        self.store, self.output_grid = store, output_grid
        self.device = device or torch.device("cpu")
        self.indices = heldout.held_out(store)
        self.windows = Windows(store.token_grid, output_grid)
        self.sample = heldout.draw_sample(store, self.indices, self.windows)
        if not self.sample.reference.any():
            raise StoreError(
                f"{store.path}: every held-out token is the mean token of the training split, so there is no variance "
                "to explain; hold out other images"
            )
        related = len(self.indices) >= protocol.MIN_NEIGHBOUR_IMAGES
        self.relations = ImageRelations(store, self.indices, self.device) if related else None
        labelled = count_labelled(store, self.indices)
        self.readers = ReaderAccuracy(store, self.indices, labelled, self.windows, self.device) if labelled else None
        self.learned_from, compared = compared_images(store, self.indices, self.windows.num_cells)
        self.likeness = (
            TokenLikeness(store, self.windows, self.learned_from, compared, self.device)
            if enough_images(store)
            else None
        )
        # What does not depend on a codec: the scale of the discrepancy ("mmd"), what real tokens get ("figures"), and
        # the probe's accuracy on real images ("probe").
        real = computed_once(
            store,
            f"real-p{protocol.PROTOCOL}-v{FIT_VERSION}-grid-{output_grid:02d}.json",
            self._measure_real,
            JsonFigures("real"),
            origin={"protocol": protocol.PROTOCOL, "probe": FIT_VERSION},
            check=self._check_real,
        )
        self.real, self.probe_full = real["figures"], real["probe"].get("full", 0.0)
        mmd = MmdReference(self.sample.mmd_reference, **real["mmd"]) if real["mmd"] else None
        self.distances = TokenDistances(self.sample, mmd)

    @torch.no_grad()
    def evaluate(self, codec: Codec | ImageCodec, *, full: bool = False) -> Figures:
        """Return the figures of a codec by name ("val/fvu" etc.); `tokconv.evaluation.figures` describes them.

        Args:
            full: also the figures that train networks: two-sample tests and the adapted reader.

        Raises:
            ConfigError: the codec does not return k * k tokens per image.
        """
        wanted = full and (self.likeness is not None or self.readers is not None)
        learned = self._compress_training(codec) if wanted else None
        fidelity = Fidelity(self.store.mean)
        collected = self.likeness.collect() if self.likeness is not None and full else None
        self.distances.start()
        measures: list[Measure] = [self.distances, *([] if collected is None else [collected])]
        if self.relations is not None:
            self.relations.start()
            measures.append(self.relations)
        if self.readers is not None:
            self.readers.start(None if learned is None else self.readers.adapt(self.learned_from, learned))
            measures.append(self.readers)
        for batch in self._batches(codec):
            fidelity.update(batch.reconstructed, batch.tokens)
            for measure in measures:
                measure.add(batch)
        figures = {**fidelity.figures(), **self.distances.figures()}
        if self.likeness is not None:
            figures["val/auc_token_quick"] = quick_auc(*self.distances.pairs(self.windows.num_cells))
        if collected is not None and learned is not None and self.likeness is not None:
            figures |= self.likeness.figures(Sides(learned, collected.values))
        return {
            **figures,
            "compression_ratio": compression_ratio(self.store.token_grid, self.output_grid),
            **self.real,
            **(self.relations.figures() if self.relations is not None else {}),
            **(self.readers.figures(self.probe_full) if self.readers is not None else {}),
        }

    def _compress_training(self, codec: Codec | ImageCodec) -> Tensor:
        """Return the standardised compressed tokens [n, K, C] of the training images that networks learn from."""
        cells = torch.empty(len(self.learned_from), self.windows.num_cells, self.store.dim, device=self.device)
        batches, done = self.learned_from.split(heldout.BATCH), 0
        for images, tokens in zip(batches, self.store.batches(batches), strict=True):
            compressed = compress_only(codec, tokens.to(self.device), images)
            self._check_cells(compressed)
            cells[done : done + len(images)] = self.store.standardise(compressed)
            done += len(images)
        return cells

    def _check_cells(self, compressed: Tensor) -> None:
        if compressed.shape[1] != self.windows.num_cells:
            raise ConfigError(
                f"a codec evaluated at {self.output_grid} x {self.output_grid} must return "
                f"{self.windows.num_cells} tokens per image, not {compressed.shape[1]}"
            )

    def _batches(self, codec: Codec | ImageCodec) -> Iterator[Batch]:
        batches = self.indices.split(heldout.BATCH)
        for images, read_tokens in zip(batches, self.store.batches(batches), strict=True):
            tokens = read_tokens.to(self.device)
            compressed, reconstructed = run_codec(codec, tokens, images)
            self._check_cells(compressed)
            standardise = self.store.standardise
            yield Batch(images, tokens, reconstructed, standardise(compressed), standardise(reconstructed))

    def _measure_real(self) -> Rows:
        # A single real token has no pairs.
        mmd = MmdReference.of(self.sample.mmd_reference) if len(self.sample.mmd_reference) > 1 else None
        figures, probe = TokenDistances(self.sample, mmd).real_figures(), Figures()
        if self.relations is not None:
            figures |= self.relations.real_figures()
        if self.readers is not None:
            accuracies = self.readers.real_accuracies(self.indices, self.sample.cells)
            probe["full"] = accuracies.pop("full")
            figures |= {f"val/{name}_sampled": accuracy for name, accuracy in accuracies.items()}
        scale = {} if mmd is None else {"median": mmd.median, "within": mmd.within}
        return {"mmd": scale, "figures": figures, "probe": probe}

    def _check_real(self, rows: Rows) -> None:
        mmd = {"median", "within"} if len(self.sample.mmd_reference) > 1 else set()
        wanted = {"mmd": mmd, "figures": rows.get("figures", {}).keys(), "probe": {"full"} if self.readers else set()}
        if {name: row.keys() for name, row in rows.items()} != wanted or "val/swd_floor" not in rows["figures"]:
            raise ValueError("not the figures of real tokens")


def add_gain(figures: Figures, pooling: Figures) -> Figures:
    """Return the figures with `val/gain`, the share of pooling's error that is gone: comparable across grids.

    Where pooling loses nothing, the gain is 0 for a codec that loses nothing either.
    """
    return {**figures, "val/gain": 1 - max(figures["val/fvu"], ROUNDING) / max(pooling["val/fvu"], ROUNDING)}

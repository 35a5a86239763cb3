"""The fixed evaluation protocol: the same held-out tokens, seeds and sizes for every trial and every baseline.

Critic-free on purpose: a critic's own distance changes its ruler with lambda_gp and n_critic. Sizes and seeds are in
`tokconv.evaluation.protocol`. Each group of figures is computed in a module of its own: `metrics/fidelity.py`,
`distances.py`, `relations.py` and `readers.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from tokconv.errors import ConfigError, StoreError
from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.distances import TokenDistances
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.metrics.fidelity import Fidelity
from tokconv.evaluation.metrics.mmd import MmdReference
from tokconv.evaluation.probe import FIT_VERSION
from tokconv.evaluation.readers import ReaderAccuracy, count_labelled
from tokconv.evaluation.relations import ImageRelations
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.windows import Windows, compression_ratio
from tokconv.store.cache import JsonFigures, Rows, computed_once
from tokconv.store.reader import TokenStore

ROUNDING = 1e-9
"""A smaller fvu is rounding: the quotient of two of them means nothing."""

Figures = dict[str, float]
Codec = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all in token units."""


def codec_of(compressor: Compressor, decoder: Decoder) -> Codec:
    """Return a compressor and its decoder as one codec; they are in eval mode while it runs."""

    def run(tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        training = compressor.training, decoder.training
        compressor.eval()
        decoder.eval()
        compressed = compressor(tokens_BNC)
        reconstructed = decoder(compressed)
        compressor.train(training[0])
        decoder.train(training[1])
        return compressed, reconstructed

    return run


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
        self.readers = ReaderAccuracy(store, labelled, self.windows, self.device) if labelled else None
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
    def evaluate(self, codec: Codec) -> Figures:
        """Return the figures of a codec by name ("val/fvu" etc.); `tokconv.evaluation.figures` describes them.

        Raises:
            ConfigError: the codec does not return k * k tokens per image.
        """
        fidelity = Fidelity(self.store.mean)
        measures = [measure for measure in (self.distances, self.relations, self.readers) if measure is not None]
        for measure in measures:
            measure.start()
        for batch in self._batches(codec):
            fidelity.update(batch.reconstructed, batch.tokens)
            for measure in measures:
                measure.add(batch)
        return {
            **fidelity.figures(),
            **self.distances.figures(),
            "compression_ratio": compression_ratio(self.store.token_grid, self.output_grid),
            **self.real,
            **(self.relations.figures() if self.relations is not None else {}),
            **(self.readers.figures(self.probe_full) if self.readers is not None else {}),
        }

    def _batches(self, codec: Codec) -> Iterator[Batch]:
        batches = self.indices.split(heldout.BATCH)
        for images, read_tokens in zip(batches, self.store.batches(batches), strict=True):
            tokens = read_tokens.to(self.device)
            compressed, reconstructed = (part.float() for part in codec(tokens))
            if compressed.shape[1] != self.windows.num_cells:
                raise ConfigError(
                    f"a codec evaluated at {self.output_grid} x {self.output_grid} must return "
                    f"{self.windows.num_cells} tokens per image, not {compressed.shape[1]}"
                )
            standardise = self.store.standardise
            yield Batch(images, tokens, reconstructed, standardise(compressed), standardise(reconstructed))

    def _measure_real(self) -> Rows:
        # A single real token has no pairs.
        mmd = MmdReference.of(self.sample.mmd_reference) if len(self.sample.mmd_reference) > 1 else None
        figures, probe = TokenDistances(self.sample, mmd).real_figures(), Figures()
        if self.relations is not None:
            figures |= self.relations.real_figures()
        if self.readers is not None:
            probe["full"], figures["val/reader_sampled"] = self.readers.real_accuracies(self.indices, self.sample.cells)
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

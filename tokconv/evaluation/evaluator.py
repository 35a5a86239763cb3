"""The fixed evaluation protocol: the same held-out tokens, seeds and sizes for every trial and every baseline.

Critic-free on purpose: a critic's own distance changes its ruler with lambda_gp and n_critic. Sizes and seeds stand in
`tokconv.evaluation.protocol`, the real tokens that everything is compared with in `tokconv.evaluation.heldout`.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokconv.errors import ConfigError
from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.metrics import Fidelity, projections, sliced_wasserstein, sorted_projections
from tokconv.evaluation.metrics.mmd import MmdReference
from tokconv.evaluation.metrics.similarity import cka, nearest, neighbour_overlap
from tokconv.evaluation.probe import FIT_VERSION, Probe, Reader, fit_probe, labelled_sample
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.windows import Windows, compression_ratio
from tokconv.store.cache import JsonFigures, computed_once
from tokconv.store.reader import TokenStore

Figures = dict[str, float]
Codec = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all in token units."""


def codec_of(compressor: Compressor, decoder: Decoder) -> Codec:
    """A compressor and its decoder as one codec; they are in eval mode while it runs."""

    def run(tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        training = compressor.training, decoder.training
        compressor.eval(), decoder.eval()
        compressed = compressor(tokens_BNC)
        reconstructed = decoder(compressed)
        compressor.train(training[0]), decoder.train(training[1])
        return compressed, reconstructed

    return run


class Evaluator:
    """The protocol for one store and one output grid; built once, used every epoch.

    Memory for 2,048 images at L/14-336 (576 x 1024): image features 0.13 GB, tokens that are compared 0.03 GB a
    sample, their projections 0.02 GB, a batch of 16 images 0.04 GB and about five times that while it is worked on.

    Args:
        store: its validation split is evaluated, at most 2,048 images of it.
        output_grid: k.
        device: where the networks are.
    """

    def __init__(self, store: TokenStore, output_grid: int, device: torch.device | None = None) -> None:
        self.store, self.output_grid = store, output_grid
        self.device = device or torch.device("cpu")
        self.indices = heldout.held_out(store)
        self.windows = Windows(store.token_grid, output_grid)
        self.sample = heldout.draw_sample(store, self.indices, self.windows)
        self.directions = projections(store.dim, protocol.NUM_PROJECTIONS, protocol.SEED)
        self.reference = sorted_projections(self.sample.reference, self.directions)
        self.relations = heldout.relations(store, self.indices)
        few = self.relations is None
        self.features = None if few else heldout.new_features(store, len(self.indices), self.device)
        # An image without a class is none that a probe could get right.
        self.num_labelled = 0 if store.labels is None else int((store.labels[self.indices] >= 0).sum())
        can_probe = self.num_labelled > 0 and len(labelled_sample(store)) > 0
        self.probe: Probe | None = fit_probe(store).to(self.device) if can_probe else None
        self.reader = self.probe.reader(self.windows) if self.probe is not None else None
        self.mmd, self.real, self.probe_full = self._real_side()

    @torch.no_grad()
    def evaluate(self, codec: Codec) -> Figures:
        """Figures of a codec by name ("val/fvu" and so on); the README says what each of them is.

        Raises:
            ConfigError: the codec does not answer with k * k tokens an image.
        """
        fidelity, hits, read = Fidelity(self.store.mean), 0, 0
        compared = heldout.Draw(self.sample.compared, self.store.dim)
        if self.features is not None:
            self.features.restart()
        batches = self.indices.split(heldout.BATCH)
        for batch, read_tokens in zip(batches, self.store.batches(batches), strict=True):
            tokens = read_tokens.to(self.device)
            compressed, reconstructed = (part.float() for part in codec(tokens))
            self._check_count(compressed)
            fidelity.update(reconstructed, tokens)
            cells, standardised = self.store.standardise(compressed), self.store.standardise(reconstructed)
            compared.take(cells)
            if self.features is not None:
                self.features.add(standardised)
            if self.probe is not None and self.reader is not None:
                hits += self._hits(self.probe, standardised, batch)
                read += self._hits(self.reader, cells, batch)
        figures = {
            "val/fvu": fidelity.fvu,
            "val/cosine": fidelity.cosine,
            "val/cosine_centered": fidelity.cosine_centered,
            **self._distances(compared.kept, self.mmd),
            "compression_ratio": compression_ratio(self.store.token_grid, self.output_grid),
            **self.real,
        }
        if self.features is not None and self.relations is not None:
            gram = self.features.gram()
            neighbours = nearest(gram, protocol.NEIGHBOURS)
            figures["val/knn_overlap"] = neighbour_overlap(self.relations.neighbours, neighbours)
            figures["val/cka"] = cka(self.relations.gram, gram)
        if self.probe is not None:
            for name, count in (("probe", hits), ("reader", read)):
                figures[f"val/{name}_accuracy"] = count / self.num_labelled
                # A probe that reads no class from the real tokens has nothing that could be kept.
                if self.probe_full > 0:
                    figures[f"val/{name}_kept"] = figures[f"val/{name}_accuracy"] / self.probe_full
        return figures

    def _real_side(self) -> tuple[MmdReference, Figures, float]:
        """What does not depend on a codec, from the store's cache or measured now: the reference of the discrepancy,
        what real tokens get where the codec's stand, and the probe's accuracy on real images."""
        kept = computed_once(
            self.store,
            f"real-p{protocol.PROTOCOL}-v{FIT_VERSION}-grid-{self.output_grid:02d}.json",
            self._measure_real,
            JsonFigures("real"),
            origin={"protocol": protocol.PROTOCOL, "probe": FIT_VERSION},
        )
        reference = MmdReference(self.sample.mmd_reference, **kept["mmd"])
        return reference, kept["figures"], kept["probe"].get("full", 0.0)

    def _measure_real(self) -> dict[str, Figures]:
        mmd, probe = MmdReference.of(self.sample.mmd_reference), Figures()
        found = {f"{name}_floor": value for name, value in self._distances(self.sample.one_per_window, mmd).items()}
        if self.relations is not None:
            found["val/knn_overlap_halves"] = self.relations.overlap_of_halves
            found["val/cka_halves"] = self.relations.cka_of_halves
        if self.probe is not None and self.reader is not None:
            full, sampled = 0, 0
            batches, every = self.indices.split(heldout.BATCH), self.sample.cells.split(heldout.BATCH)
            for batch, cells, read_tokens in zip(batches, every, self.store.batches(batches), strict=True):
                tokens = self.store.standardise(read_tokens.to(self.device))
                one_each = tokens.gather(1, cells[..., None].expand(-1, -1, self.store.dim).to(self.device))
                full += self._hits(self.probe, tokens, batch)
                sampled += self._hits(self.reader, one_each, batch)
            probe["full"] = full / self.num_labelled
            found["val/reader_sampled"] = sampled / self.num_labelled
        return {"mmd": {"median": mmd.median, "within": mmd.within}, "figures": found, "probe": probe}

    def _distances(self, tokens_nC: Tensor, mmd: MmdReference) -> Figures:
        projected = sorted_projections(tokens_nC, self.directions)
        figures = {"val/swd": sliced_wasserstein(projected, self.reference)}
        # A single compressed token in all has no pairs.
        if len(tokens_nC) > 1:
            figures["val/mmd"] = mmd.squared_distance(tokens_nC[: protocol.MAX_MMD_TOKENS])
        return figures

    def _hits(self, classifier: Probe | Reader, standardised: Tensor, batch: Tensor) -> int:
        assert self.store.labels is not None
        return int((classifier.predict(standardised).cpu() == self.store.labels[batch]).sum())

    def _check_count(self, compressed: Tensor) -> None:
        if compressed.shape[1] != self.windows.num_cells:
            raise ConfigError(
                f"a codec evaluated at {self.output_grid} x {self.output_grid} must answer with "
                f"{self.windows.num_cells} tokens an image, not {compressed.shape[1]}"
            )


def add_gain(figures: Figures, pooling: Figures) -> Figures:
    """The figures with `val/gain`, the share of pooling's error that is gone: comparable across grids."""
    return {**figures, "val/gain": 1 - figures["val/fvu"] / pooling["val/fvu"]}

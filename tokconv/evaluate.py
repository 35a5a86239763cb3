"""The fixed evaluation protocol: the same held-out tokens, seeds and sizes for every trial and every baseline.

Critic-free on purpose: a critic's own distance changes its ruler with lambda_gp and n_critic. A change of any constant
here is a new PROTOCOL, and figures of different protocols are not comparable.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from filelock import FileLock
from torch import Tensor

from tokconv.baselines import BASELINES, linear_codecs
from tokconv.errors import StoreError
from tokconv.files import write_json
from tokconv.grid import Windows, compression_ratio
from tokconv.metrics import Fidelity, projections, sliced_wasserstein, sorted_projections
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.probe import Probe, fit_probe, labelled_sample
from tokconv.store import TokenStore

PROTOCOL = 1
MAX_IMAGES = 2048
MAX_TOKENS = 8192
NUM_PROJECTIONS = 512
SEED = 20_001
BATCH = 64

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


@dataclass(frozen=True)
class _Sample:
    """Standardised real tokens: what compressed tokens are compared with, and a second draw for the floor."""

    reference: Tensor
    """Sorted projections, [512, n]."""
    one_per_window: Tensor
    """[n, C]."""
    chosen: Tensor
    """Which of the B*K compressed tokens are compared, [n]."""


class Evaluator:
    """The protocol for one store and one output grid; built once, used every epoch.

    Args:
        store: its validation split is evaluated, at most 2,048 images of it.
        output_grid: k.
        device: where the networks are.
    """

    def __init__(self, store: TokenStore, output_grid: int, device: torch.device | None = None) -> None:
        self.store, self.output_grid = store, output_grid
        self.device = device or torch.device("cpu")
        generator = torch.Generator().manual_seed(SEED)
        order = torch.randperm(len(store.val_indices), generator=generator)[:MAX_IMAGES]
        self.indices = store.val_indices[order].sort().values
        self.directions = projections(store.dim, NUM_PROJECTIONS, SEED)
        self.sample = self._draw(Windows(store.token_grid, output_grid), generator)
        self.swd_floor = self._swd(self.sample.one_per_window)
        # An image without a class is none that a probe could get right.
        self.num_labelled = 0 if store.labels is None else int((store.labels[self.indices] >= 0).sum())
        can_probe = self.num_labelled > 0 and len(labelled_sample(store)) > 0
        self.probe: Probe | None = fit_probe(store) if can_probe else None
        self._probe_full: float | None = None

    @torch.no_grad()
    def evaluate(self, codec: Codec) -> Figures:
        """Figures of a codec by name ("val/fvu" and so on); the README says what each of them is."""
        fidelity, cells, hits = Fidelity(self.store.mean), [], 0
        for batch in self.indices.split(BATCH):
            tokens = self.store.tokens(batch).to(self.device)
            compressed, reconstructed = (part.float() for part in codec(tokens))
            fidelity.update(reconstructed, tokens)
            cells.append(self._standardise(compressed).flatten(0, 1).cpu())
            hits += self._hits(reconstructed, batch)
        compared = torch.cat(cells)[self.sample.chosen]
        figures = {
            "val/fvu": fidelity.fvu,
            "val/cosine": fidelity.cosine,
            "val/cosine_centered": fidelity.cosine_centered,
            "val/swd": self._swd(compared),
            "val/swd_floor": self.swd_floor,
            "compression_ratio": compression_ratio(self.store.token_grid, self.output_grid),
        }
        if self.probe is not None:
            figures["val/probe_accuracy"] = hits / self.num_labelled
            # A probe that reads no class from the real tokens has nothing that could be kept.
            if self.probe_full > 0:
                figures["val/probe_kept"] = figures["val/probe_accuracy"] / self.probe_full
        return figures

    @property
    def probe_full(self) -> float:
        """The probe's accuracy on uncompressed held-out tokens."""
        if self._probe_full is None:
            hits = sum(self._hits(self.store.tokens(batch), batch) for batch in self.indices.split(BATCH))
            self._probe_full = hits / self.num_labelled
        return self._probe_full

    def _swd(self, tokens_nC: Tensor) -> float:
        return sliced_wasserstein(sorted_projections(tokens_nC, self.directions), self.sample.reference)

    def _standardise(self, tokens: Tensor) -> Tensor:
        return (tokens - self.store.mean.to(tokens.device)) / self.store.scale

    def _hits(self, tokens: Tensor, batch: Tensor) -> int:
        if self.probe is None or self.store.labels is None:
            return 0
        predicted = self.probe.predict(self._standardise(tokens)).cpu()
        return int((predicted == self.store.labels[batch]).sum())

    def _draw(self, windows: Windows, generator: torch.Generator) -> _Sample:
        """Reference: tokens from anywhere in the images. Floor: one token per window, as an ideal compressor that
        answers with real tokens would give. Both of as many tokens as are compared."""
        anywhere, per_window = [], []
        for batch in self.indices.split(BATCH):
            tokens = self._standardise(self.store.tokens(batch))
            places = torch.randint(tokens.shape[1], (len(batch), windows.num_cells), generator=generator)
            anywhere.append(tokens.gather(1, places[..., None].expand(-1, -1, tokens.shape[2])).flatten(0, 1))
            per_window.append(windows.sample(tokens, generator).flatten(0, 1))
        reference, one_per_window = torch.cat(anywhere), torch.cat(per_window)
        chosen = torch.randperm(len(reference), generator=generator)[:MAX_TOKENS]
        return _Sample(sorted_projections(reference[chosen], self.directions), one_per_window[chosen], chosen)


def baseline_figures(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    """Figures of every baseline at this grid, computed once per store, grid and protocol, then read back.

    `val/gain` is 1 - fvu / fvu of pooling.
    """
    path = store.derived_dir / f"baselines-p{PROTOCOL}-grid-{output_grid:02d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            write_json(path, _measure_baselines(store, output_grid))
        return _read_figures(path)


def add_gain(figures: Figures, pooling: Figures) -> Figures:
    """The figures with `val/gain`, the share of pooling's error that is gone: comparable across grids."""
    return {**figures, "val/gain": 1 - figures["val/fvu"] / pooling["val/fvu"]}


def _measure_baselines(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    evaluator = Evaluator(store, output_grid)
    codecs = linear_codecs(store, output_grid)
    measured: dict[str, Figures] = {}
    for name in BASELINES:
        compressor, decoder = linear_networks(store, output_grid)
        codecs[name].fill(compressor, decoder)
        measured[name] = evaluator.evaluate(codec_of(compressor, decoder))
    return {name: add_gain(figures, measured["pooling"]) for name, figures in measured.items()}


def linear_networks(store: TokenStore, output_grid: int) -> tuple[Compressor, Decoder]:
    """A compressor and a decoder that are nothing but their window projections."""
    sizes = (store.token_grid, store.dim, output_grid)
    compressor = Compressor(*sizes, use_residual=False, mean=store.mean, scale=store.scale)
    return compressor, Decoder(*sizes, num_layers=0, hidden_dim=1, mean=store.mean, scale=store.scale)


def _read_figures(path: Path) -> dict[str, Figures]:
    try:
        figures: dict[str, Figures] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise StoreError(f"{path}: damaged; remove it and it is computed again") from error
    return figures

"""Baselines on a small store: their fits, and their tokens, codes and reconstructions."""

from __future__ import annotations

import torch
from torch import Tensor

from tokconv.evaluation.baselines import fits
from tokconv.evaluation.baselines.codecs import baseline_codec
from tokconv.evaluation.codecs import run_codec
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches

MERGING = ("tome", "prumerge")
LINEAR = ("pooling", "pixel_shuffle", "window_pca", "matched_window_pca")
OVERLAPPING = 4
"""A grid whose windows overlap: 4 does not divide 6."""


def fits_of(store: TokenStore, grid: int) -> dict[str, Tensor]:
    """Return the tensors of every baseline, fitted anew."""
    parts = [fits.WINDOWS, *(entry.name for entry in fits.FITTED if entry not in fits.IN_WINDOWS)]
    return {name: tensor for part in parts for name, tensor in fits.fit_part(store, grid, part).items()}


def _tokens(store: TokenStore) -> Tensor:
    """Return the standardised training tokens, on which all baselines are fitted."""
    return torch.cat(list(standardised_batches(store, store.train_indices)))


def run_baseline(store: TokenStore, name: str, grid: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return standardised training tokens, their codes and their reconstructions."""
    images = store.train_indices
    codes, reconstructed = run_codec(baseline_codec(store, grid, name), store.tokens(images), images)
    return _tokens(store), (codes - store.mean) / store.scale, (reconstructed - store.mean) / store.scale

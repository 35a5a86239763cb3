"""The held-out images of the evaluation protocol, and the real tokens that compressed tokens are compared with.

All of it depends on the store and at most on the output grid, never on a compressor.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from tokconv.evaluation import protocol
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore

BATCH = 16
"""Images in memory at a time; no figure depends on it. 16 is the fastest of 8 to 64 on a CPU, because its caches hold
that many."""


def held_out(store: TokenStore) -> Tensor:
    """Return the indices of the evaluated images, ascending: at most 2,048 of the validation split."""
    generator = torch.Generator().manual_seed(protocol.SEED)
    order = torch.randperm(len(store.val_indices), generator=generator)[: protocol.MAX_IMAGES]
    return store.val_indices[order].sort().values


@dataclass(frozen=True)
class Batch:
    """Some held-out images and what a codec makes of them; float32 on the evaluator's device.

    images: [B] int64 on the CPU, indices in the store.
    tokens, reconstructed: [B, N, C] in token units.
    cells, standardised: compressed tokens [B, K, C] and reconstructed tokens [B, N, C], both standardised.
    """

    images: Tensor
    tokens: Tensor
    reconstructed: Tensor
    cells: Tensor
    standardised: Tensor


class RowSample:
    """Chosen rows out of the rows of all held-out images, collected batch by batch, so that not all are in memory.

    Args:
        rows: [m] int64, which rows, counted through all images; in any order.
        dim: C.
    """

    def __init__(self, rows: Tensor, dim: int) -> None:
        self._rows, self._num_passed = rows, 0
        self.values = torch.empty(len(rows), dim)
        """[m, C], in the order of `rows`; complete once all batches have passed."""

    def add(self, batch_BRC: Tensor) -> None:
        """Collect from the next images, which have R rows each."""
        count = batch_BRC.shape[0] * batch_BRC.shape[1]
        mine = (self._rows >= self._num_passed) & (self._rows < self._num_passed + count)
        wanted = (self._rows[mine] - self._num_passed).to(batch_BRC.device)
        self.values[mine] = batch_BRC.flatten(0, 1)[wanted].float().cpu()
        self._num_passed += count


@dataclass(frozen=True)
class Sample:
    """Standardised real tokens for the figures that compare token by token, at one output grid.

    reference: [n, C] from anywhere in the images, as many as there are compared tokens.
    one_per_window: [n, C], what an ideal compressor that returns real tokens would give.
    mmd_reference: [m, C] from anywhere in the images, the same at every grid.
    compared: [n] int64, which of the compressed tokens are compared, in random order.
    cells: [images, K] int64, the token of each window that `one_per_window` was drawn from.
    """

    reference: Tensor
    one_per_window: Tensor
    mmd_reference: Tensor
    compared: Tensor
    cells: Tensor


def draw_sample(store: TokenStore, images: Tensor, windows: Windows) -> Sample:
    """Draw the sample with the protocol's seed, in one pass over the images."""
    generator = torch.Generator().manual_seed(protocol.SEED)
    tokens_each, num_cells = store.num_tokens, windows.num_cells
    mmd_rows = torch.randperm(len(images) * tokens_each, generator=generator)[: protocol.MAX_MMD_TOKENS]
    places = torch.randint(tokens_each, (len(images), num_cells), generator=generator)
    numbers = torch.arange(tokens_each).expand(len(images), -1)[..., None]
    cells = windows.sample(numbers, generator)[..., 0]
    compared = torch.randperm(places.numel(), generator=generator)[: protocol.MAX_TOKENS]
    first_rows = (torch.arange(len(images)) * tokens_each)[:, None]
    rows = (first_rows + places).flatten()[compared], (first_rows + cells).flatten()[compared], mmd_rows
    reference, one_per_window, mmd_reference = samples = [RowSample(chosen, store.dim) for chosen in rows]
    for read_tokens in store.batches(images.split(BATCH)):
        tokens = store.standardise(read_tokens)
        for sample in samples:
            sample.add(tokens)
    return Sample(reference.values, one_per_window.values, mmd_reference.values, compared, cells)

"""The tokens that all closed forms are fitted on: standardised, of the training split, chosen by a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokconv.store.reader import TokenStore

MAX_IMAGES = 2048
BATCH = 64


def training_sample(store: TokenStore, limit: int = MAX_IMAGES) -> Tensor:
    """Return at most `limit` training indices [n] int64, ascending, chosen by a fixed seed."""
    chosen = torch.randperm(len(store.train_indices), generator=torch.Generator().manual_seed(0))[:limit]
    return store.train_indices[chosen].sort().values


def standardised_batches(store: TokenStore, indices: Tensor) -> Iterator[Tensor]:
    """Yield the standardised tokens [b, N, C] float32 of these images, in order."""
    for tokens in store.batches(indices.split(BATCH)):
        yield store.standardise(tokens)

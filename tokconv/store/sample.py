"""The tokens that all closed forms are fitted on: standardised, of the training split, chosen by a fixed seed."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.store.reader import TokenStore

MAX_IMAGES = 2048
BATCH = 64


def training_sample(store: TokenStore, limit: int = MAX_IMAGES) -> Tensor:
    """Return at most `limit` training indices [n] int64, ascending, chosen by a fixed seed."""
    chosen = torch.randperm(len(store.train_indices), generator=torch.Generator().manual_seed(0))[:limit]
    return store.train_indices[chosen].sort().values


def check_varied(store: TokenStore) -> None:
    """Check that there is variance to compress: not all training tokens are equal, nor all training images.

    Reading ends at the first difference, thus usually after two images.

    Raises:
        StoreError: there is none; no fit, figure or training would mean anything.
    """
    first: Tensor | None = None
    for tokens in store.batches(store.train_indices.split(2)):
        first = tokens[0].clone() if first is None else first
        if not torch.equal(tokens, first.expand_as(tokens)):
            return
    if first is None or (len(store.train_indices) == 1 and not torch.equal(first, first[:1].expand_as(first))):
        return
    what = "tokens" if torch.equal(first, first[:1].expand_as(first)) else "images"
    raise StoreError(
        f"{store.path}: all {what} of its training split are equal (stored in {store.settings.dtype}), so there is no "
        "variance to compress; check the images or features that it was encoded from"
    )


def check_windows(store: TokenStore, output_grid: int) -> None:
    """Raise StoreError if the training images have a single window at this grid: one has no variance."""
    if len(store.train_indices) * output_grid**2 < 2:
        raise StoreError(f"{store.path}: its only training image is a single window at grid 1; encode more images")


def standardised_batches(store: TokenStore, indices: Tensor) -> Iterator[Tensor]:
    """Yield the standardised tokens [b, N, C] float32 of these images, in order."""
    for tokens in store.batches(indices.split(BATCH)):
        yield store.standardise(tokens)

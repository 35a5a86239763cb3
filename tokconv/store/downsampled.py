"""The tokens of downsampled images, beside the store of the whole ones: what the same tower makes of smaller images.

    STORE/derived/downsampled-grid-06/    a token store of k x k tokens for an image, whose keys are indices in STORE

It is a store like any other: written shard by shard, resumed after an interruption, complete once it has its index.
`tokconv.encoding.downsampled` writes it.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.store.format import INDEX, StoreSettings, default_shard_size, digest
from tokconv.store.reader import TokenStore


def downsampled_dir(store: TokenStore, output_grid: int) -> Path:
    """Return the directory of the tokens at one grid; it need not exist."""
    return store.derived_dir / f"downsampled-grid-{output_grid:02d}"


def downsampled_settings(store: TokenStore, output_grid: int, images: Tensor) -> StoreSettings:
    """Return the settings of the tokens of these images [n], ascending indices in the store."""
    return replace(
        store.settings,
        encoder={**store.settings.encoder, "interpolated_to": output_grid},
        source={"store": store.fingerprint, "images": digest(images.tolist())},
        num_items=len(images),
        token_grid=output_grid,
        class_names=(),
        shard_size=default_shard_size(output_grid, store.dim, store.settings.dtype),
    )


class DownsampledTokens:
    """The tokens of downsampled images, by the index of the image in the store.

    Args:
        small: as `tokconv.encoding.downsampled` writes it.
    """

    def __init__(self, small: TokenStore) -> None:
        self.small = small
        self._images = torch.tensor([int(key) for key in small.keys])

    @classmethod
    def find(cls, store: TokenStore, output_grid: int) -> DownsampledTokens | None:
        """Open the tokens of a store at a grid; None if they were not encoded, or not to the end.

        Raises:
            StoreError: they are damaged, or of another store.
        """
        path = downsampled_dir(store, output_grid)
        if not (path / INDEX).exists():
            return None
        small = TokenStore.open(path)
        if small.settings.source.get("store") != store.fingerprint or small.token_grid != output_grid:
            raise StoreError(f"{path}: belongs to another store; remove it and it is encoded again")
        return cls(small)

    def tokens(self, images: Tensor) -> Tensor:
        """Return the tokens [B, K, C] of these images, float32 in token units.

        Raises:
            StoreError: one of them was not encoded.
        """
        rows = torch.searchsorted(self._images, images).clamp_max(len(self._images) - 1)
        missing = images[self._images[rows] != images].tolist()
        if missing:
            raise StoreError(f"{self.small.path}: lacks image {missing[0]}; remove it and it is encoded again")
        return self.small.tokens(rows)

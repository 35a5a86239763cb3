"""What a store knows of the files that it was encoded from, so that a changed data set is noticed.

Each shard holds a digest of the content of each of its images (`format.py`). Beside the shards, `files.safetensors`
holds `stats` [num_items, 2] int64, the size in bytes and the time of the last change in ns of the file of every image
of the source, readable or not, from when their contents were last known to be those of the digests; -1, -1 without a
file. Content is read again only where these differ. The record is no part of the fingerprint: a copied data set has
other times and the same content.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokconv.store.format import DIGEST_BYTES, map_shard
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path

FILES = "files.safetensors"


def read_stats(directory: Path, num_items: int) -> Tensor | None:
    """Return the recorded sizes and times [num_items, 2] int64; None if there is no readable record of so many."""
    try:
        with safe_open(directory / FILES, framework="pt") as file:
            stats: Tensor = file.get_tensor("stats")
    except (OSError, SafetensorError):
        return None
    return stats if stats.shape == (num_items, 2) and stats.dtype == torch.int64 else None


def write_stats(directory: Path, stats: Tensor) -> None:
    """Record sizes and times. A store that cannot be written keeps its record: contents are then compared again."""
    with suppress(OSError), atomic_path(directory / FILES) as temporary:
        save_file({"stats": stats.contiguous()}, temporary)


def read_all_digests(shards: Sequence[Path]) -> list[bytes | None]:
    """Return the digests of the content of all images of a store's shards, in order; None where it is unknown."""
    return [content for shard in shards for content in _digests(map_shard(shard))]


def read_digests(shard: Path, items: Sequence[int]) -> list[bytes | None]:
    """Return the digests of the content of some items of a shard; None where it is unknown."""
    tensors = map_shard(shard)
    contents = _digests(tensors)
    rows = torch.searchsorted(tensors["items"], torch.tensor(items, dtype=torch.int64))
    return [contents[row] for row in rows.tolist()]


def _digests(tensors: Mapping[str, Tensor]) -> list[bytes | None]:
    if "contents" not in tensors:
        return [None] * len(tensors["items"])
    rows = tensors["contents"].numpy().tobytes()
    parts = (rows[start : start + DIGEST_BYTES] for start in range(0, len(rows), DIGEST_BYTES))
    return [content if any(content) else None for content in parts]


def copies_across(store: TokenStore) -> list[tuple[int, int]]:
    """Return the held-out images that are also among those to train on, byte for byte, each with such an image."""
    contents = read_all_digests(store.shard_paths())
    trained = {content: image for image in store.train_indices.tolist() if (content := contents[image]) is not None}
    held_out = store.val_indices.tolist()
    return [(image, trained[content]) for image in held_out if (content := contents[image]) in trained]

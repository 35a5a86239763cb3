"""What every image source has: items with keys, labels and splits, an image or tokens for each, and an identity.

A source is small and picklable, so that worker processes can open the images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch
from PIL import Image
from torch import Tensor

from tokconv.store.format import DIGEST_BYTES

NUM_PROBES = 256
STAT_THREADS, STATS_AT_ONCE = 8, 4096
NO_FILE = (-1, -1)

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image of a source."""

    key: str
    """Unique within the source; the relative path of a file."""
    label: int | None = None
    """Index into the source's class names; None without a label."""
    split: str | None = None
    """train or val if the source declares it."""
    view: int = 0
    """Which view of an image it is (`views.py`); 0 is the image as it is."""


class ImageSource(Protocol):
    """Where images come from."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names of the classes; empty if the source has no labels."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What a user should know of how the source was read: its splits, and what was left out or ignored."""

    @property
    def items(self) -> Sequence[ImageItem]: ...

    def load(self, index: int) -> Image.Image | Tensor:
        """Return the image in RGB, or its ready-made tokens [N, C] float32.

        Raises OSError, ValueError and other errors of Pillow if it cannot be read.
        """

    def identity(self) -> dict[str, Any]:
        """Return JSON that is equal for two sources if they have the same images by key, label and split.

        Whether the images also have the same content is told by `stats` and `content`.
        """

    def probed_identity(self) -> dict[str, Any]:
        """Return the identity as earlier versions wrote it, with a digest of some contents."""

    def stats(self, indices: Sequence[int]) -> Tensor:
        """Return the size in bytes and the time of the last change in ns of the images' files, [n, 2] int64.

        An image without a file, or whose file cannot be found, has -1, -1.
        """

    def content(self, index: int) -> bytes:
        """Return the `content_digest` of what `load` reads. Raises as `load` if it cannot be read."""


def content_digest(content: bytes | Path) -> bytes:
    """Return the digest of some bytes or of a file, [DIGEST_BYTES]. Raises OSError if the file cannot be read."""
    if isinstance(content, bytes):
        return hashlib.blake2b(content, digest_size=DIGEST_BYTES).digest()
    with content.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=DIGEST_BYTES)).digest()


def file_stats(paths: Sequence[str | None]) -> Tensor:
    """Return size and time of the last change of files, as `ImageSource.stats`; several at once, for network disks."""
    parts = [paths[start : start + STATS_AT_ONCE] for start in range(0, len(paths), STATS_AT_ONCE)]
    with ThreadPoolExecutor(STAT_THREADS) as pool:
        found = [stat for part in pool.map(_stat_all, parts) for stat in part]
    return torch.tensor(found, dtype=torch.int64).view(len(paths), 2)


def _stat_all(paths: Sequence[str | None]) -> list[tuple[int, int]]:
    # Images that share a file are neighbours.
    found: list[tuple[int, int]] = []
    last: str | None = None
    for path in paths:
        found.append(found[-1] if found and path == last else _stat(path))
        last = path
    return found


def _stat(path: str | None) -> tuple[int, int]:
    try:
        stat = None if path is None else os.stat(path)  # noqa: PTH116 (a Path would cost more than the stat)
    except OSError:
        stat = None
    return NO_FILE if stat is None else (stat.st_size, stat.st_mtime_ns)


def basic_identity(source: ImageSource) -> dict[str, Any]:
    """Return name, count, and a digest of keys, labels and splits."""
    keys = digest(f"{item.key}\t{item.label}\t{item.split}" for item in source.items)
    return {"name": source.name, "count": len(source.items), "keys": keys}


def probes(items: Sequence[T]) -> Sequence[T]:
    """Return a few hundred evenly spaced items: looking into all of them would be slow on a network disk."""
    return items[:: max(1, len(items) // NUM_PROBES)]


def digest(lines: Iterable[Any]) -> str:
    """Return the sha256 of the lines' texts."""
    total = hashlib.sha256()
    for line in lines:
        total.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()

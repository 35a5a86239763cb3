"""What every image source has: items with keys, labels and splits, an image or tokens for each, and an identity.

A source is small and picklable, so that worker processes can open the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL import Image
from torch import Tensor

NUM_PROBES = 256

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
        """Return JSON that is equal for two sources exactly if their tokens may share a store."""


def basic_identity(source: ImageSource) -> dict[str, Any]:
    """Return name, count, and a digest of keys, labels and splits; sources of files add a digest of their contents."""
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

"""What every image source is: items with keys, labels and splits, an image or its tokens for each, and an identity.

A source is small and picklable, so that worker processes can open the images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from PIL import Image
from torch import Tensor

SPLITS = ("train", "val")
NUM_PROBES = 256

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image of a source."""

    key: str
    """Unique in its source; the relative path for files."""
    label: int | None = None
    """Index into the source's class names."""
    split: str | None = None
    """train or val when the source declares it."""


class ImageSource(Protocol):
    """Where images come from."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty when there are no labels."""
        ...

    @property
    def items(self) -> Sequence[ImageItem]: ...

    def load(self, index: int) -> Image.Image | Tensor:
        """The image in RGB, or its tokens [N, C] float32 where they are there already.

        Raises OSError, ValueError and others of Pillow's for one that cannot be read.
        """
        ...

    def identity(self) -> dict[str, Any]:
        """JSON; equal for two sources exactly when their tokens may share a store."""
        ...


def basic_identity(source: ImageSource) -> dict[str, Any]:
    """Name, count, and a digest of every key, label and split; sources of files add what tells their contents apart."""
    keys = digest(f"{item.key}\t{item.label}\t{item.split}" for item in source.items)
    return {"name": source.name, "count": len(source.items), "keys": keys}


def probes(items: Sequence[T]) -> Sequence[T]:
    """A few hundred evenly spaced ones: looking into all of them would be slow on a network disk."""
    return items[:: max(1, len(items) // NUM_PROBES)]


def digest(lines: Iterable[Any]) -> str:
    """sha256 of the lines' texts."""
    total = hashlib.sha256()
    for line in lines:
        total.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return total.hexdigest()

"""The image sources, and the keys of `data` that each of them reads; `tokconv.encoding.sources.registry` opens them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SourceKeys:
    """The keys of `data` that one source reads, next to those that every source reads."""

    root: str | None = None
    """What `data.root` names; None if the source reads no root."""
    optional: tuple[str, ...] = ()
    """Further keys, which may be left out."""


IMAGES = SourceKeys("the folder of the images")
SOURCES = {
    "digits": SourceKeys(),
    "photographs": SourceKeys(),
    "folder": IMAGES,
    "imagenet": IMAGES,
    "coco": SourceKeys("the folder of the images", optional=("name",)),
    "huggingface": SourceKeys("a data set's name or directory", optional=("name", "image_column", "label_column")),
    "features": SourceKeys("a file of tokens, or a folder of them", optional=("extra_tokens",)),
}
"""The values of `data.source`."""
MAY_CHANGE = ("data.root", "data.store", "data.num_workers", "data.encode_batch_size")
"""Keys that a resumed run or sweep may change: where its data are and how they are read."""
OPTIONAL_KEYS = tuple(dict.fromkeys(key for source in SOURCES.values() for key in source.optional))

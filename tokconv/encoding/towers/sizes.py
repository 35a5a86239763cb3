"""The size at which a tower sees images, and an image processor that makes it.

Towers may see images of another size than the one they are published for (`model.clip.image_size`): transformers
interpolates their position embeddings, or rotates queries and keys by positions of any grid.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tokconv.encoding.towers.families import Family
from tokconv.errors import ConfigError

PROCESSOR_SIZE = 224
"""The size of an image processor that does not state one."""


def choose_image_size(asked: int | None, own: int, patch_size: int, family: Family, name: str) -> int:
    """Return the size of the images that a tower sees, in pixels a side.

    Args:
        asked: `model.clip.image_size`; None takes the tower's own, or the largest one of `family.default_grid` tokens
            a side where its own has more.
        own: the size in the tower's config.
        name: of the tower, for the message.

    Raises:
        ConfigError: the size that was asked for is neither the tower's own nor a multiple of its patches.
    """
    if asked is None:
        return own if family.default_grid is None else min(own, family.default_grid * patch_size)
    if asked != own and asked % patch_size:
        below = asked // patch_size * patch_size
        nearest = " and ".join(str(size) for size in (below, below + patch_size) if size)
        raise ConfigError(
            f"model.clip.image_size: got {asked}; {name!r} has patches of {patch_size} pixels, so it must be a "
            f"multiple of {patch_size} (nearest: {nearest}){'' if own % patch_size == 0 else f' or its own {own}'}"
        )
    return asked


def made_size(preprocessing: Mapping[str, Any], family: Family) -> tuple[Any, Any] | None:
    """Return the height and width of images after preprocessing; None if they differ from image to image."""
    if preprocessing.get("do_center_crop", family.crops):
        return _height_width(preprocessing.get("crop_size", PROCESSOR_SIZE))
    if preprocessing.get("do_resize", True):
        return _height_width(preprocessing.get("size", None if family.crops else PROCESSOR_SIZE))
    return None


def resized(preprocessing: Mapping[str, Any], family: Family, image_size: int) -> dict[str, Any]:
    """Return an image processor's settings that make square images of a size, which it already may do.

    A processor that crops first resizes the shorter side to the same size, so that the square is as much of the image
    as possible. One that neither crops nor resizes is returned as it is.
    """
    settings = dict(preprocessing)
    if made_size(settings, family) == (image_size, image_size):
        return settings
    square = {"height": image_size, "width": image_size}
    crops = settings.get("do_center_crop", family.crops)
    if crops:
        settings["crop_size"] = square
    if settings.get("do_resize", True):
        stated = settings.get("size")
        squeezes = not crops or (isinstance(stated, Mapping) and {"height", "width"} <= stated.keys())
        settings["size"] = square if squeezes else {"shortest_edge": image_size}
    return settings


def _height_width(size: Any) -> tuple[Any, Any] | None:
    if not isinstance(size, dict):
        return None if size is None else (size, size)
    return (size["height"], size["width"]) if {"height", "width"} <= size.keys() else None

"""Pillow's modes as RGB: every mode by the range of its values, or refused with the reason.

Modes of more than 8 bits hold one grey value per pixel. What is white follows from the file where it states that: 65535
for 16 bits, 4095 for 12, 32767 for 16 with a sign. A file of floats or of 32-bit integers states nothing, so the values
of the image decide: the smallest of 1 (floats only), 255 and 65535 that none of them exceeds. An image that would
become nearly black that way is refused, because a value slightly above 1 or 255 is more often an overshoot than a dark
image of the next range.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

WHITES = {"F": (1.0, 255.0, 65535.0), "I": (255.0, 65535.0)}
"""What white can be in an image that does not state it, by mode."""
DARKEST = 1 / 16
"""The share of white that the brightest value must reach in a range beyond the first."""
# TIFF 6.0, section 8.
_PHOTOMETRIC, _BITS, _SAMPLE_FORMAT = 262, 258, 339
_SIGNED = 2


class Stated(NamedTuple):
    """What a file states about its values; copies of the opened image no longer know it."""

    white: float | None
    """White among grey values of more than 8 bits; None if the file does not state it."""
    inverted: bool
    """Whether 0 is white among such values."""
    deep_colours: bool
    """Whether its colours have 16 bits, of which Pillow keeps the upper 8."""


def stated_values(image: Image.Image) -> Stated:
    """Return what a file states that was opened and not loaded.

    Raises:
        ValueError: Pillow would read its values wrong.
    """
    if image.format == "FITS" and image.mode.startswith("I;16"):
        raise ValueError("a FITS file of 16 bits, whose sign Pillow ignores; save it as a TIFF")
    tags: Mapping[int, Any] = getattr(image, "tag_v2", {})
    bits = tags.get(_BITS, (16,))[0]
    signed = _SIGNED in tags.get(_SAMPLE_FORMAT, ())
    # Pillow scales the values of a portable graymap of more than 8 bits to 65535, whatever its own maximum is.
    known = image.mode.startswith("I;16") or image.format == "PPM" or (image.format == "TIFF" and bits == 16)
    white = 2.0 ** (bits - signed) - 1 if known and image.mode != "F" else None
    deep_colours = any(tile.args == "RGB;16B" for tile in getattr(image, "tile", ()))
    return Stated(white, tags.get(_PHOTOMETRIC) == 0, deep_colours)


def to_rgb(image: Image.Image, stated: Stated) -> Image.Image:
    """Convert any mode to RGB, with transparency on white.

    Raises:
        ValueError: grey values that are not finite, below 0, or beyond every known range.
    """
    # `convert("RGB")` alone would clip deep grey values and reveal hidden colours.
    if image.mode == "F" or image.mode.startswith("I"):
        return Image.fromarray(_eight_bits(image, stated)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")  # the only mode that Pillow converts it to
    clear = image.info.get("transparency")
    if stated.deep_colours and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)
    if image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return image.convert("RGB")


def _eight_bits(image: Image.Image, stated: Stated) -> Any:
    """Return grey values [height, width] as uint8."""
    values = np.asarray(image)
    white = stated.white or _likely_white(image.mode, float(values.min()), float(values.max()))
    levels = values * (255 / white)
    np.rint(levels, out=levels)
    if levels.min() < 0 or levels.max() > 255:
        raise ValueError(f"grey values from {values.min():g} to {values.max():g}; must be 0 to {white:g}")
    grey = levels.astype(np.uint8)
    if stated.inverted:
        grey = 255 - grey
    # A PNG of 16 bits can name one value that is transparent.
    clear = image.info.get("transparency")
    if isinstance(clear, int):
        grey[values == clear] = 255
    return grey


def _likely_white(mode: str, low: float, high: float) -> float:
    """Return what white is in an image that does not state it. Raises ValueError if no range fits."""
    if not np.isfinite([low, high]).all():
        raise ValueError("grey values that are not finite (NaN or infinity); replace them and save it again")
    whites = WHITES[mode]
    # Half a level of rounding is no overshoot.
    fitting = [white for white in whites if low > -0.5 / 255 * white and high < white * (1 + 0.5 / 255)]
    if not fitting or (high and fitting[0] != 1 and high < fitting[0] * DARKEST):
        ranges = ", ".join(f"0 to {white:g}" for white in whites)
        raise ValueError(
            f"grey values from {low:g} to {high:g}; must fill one of the ranges {ranges}, or be saved with 8 or 16 bits"
        )
    return fitting[0]

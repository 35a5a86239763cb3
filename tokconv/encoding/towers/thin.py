"""Images many times longer than wide, made shorter before an image processor enlarges them.

A processor that crops scales the short side to the tower's size first, and the long side with it. Of 2,000 x 1 pixels
it made 336 x 672,000 at a tower of 336, which took 1.6 GB, and ten times that for 20,000 x 1, a file of 99 bytes; then
it kept 336 x 336 of them. A processor that squeezes scales the width first, which took 0.5 GB for 1 x 400,000 pixels.
Shortened first, as here, each takes 0.03 GB. Images of ordinary shape are left alone, so that their tokens keep their
bits.
"""

from __future__ import annotations

import math
from typing import Any

from PIL import Image

MAX_RATIO = 32
"""Images whose long side is at most this many short sides are left alone."""
EXACT_FACTOR = 64.0
"""How many pixels of the image become one by the processor's own filter; more are averaged before."""


def shorten(processor: Any, image: Image.Image) -> Image.Image:
    """Return an image of which the processor makes the same pixels, up to rounding, in memory bounded by its size."""
    long, short = max(image.size), min(image.size)
    if long <= MAX_RATIO * short or not processor.do_resize:
        return image
    wide = image.width > image.height
    size = processor.size
    edge = _get(size, "shortest_edge")
    if edge and not _get(size, "longest_edge") and processor.do_center_crop:
        kept = _get(processor.crop_size, "width" if wide else "height")
        window = short * max(MAX_RATIO, 2 * math.ceil(kept / edge))
        # Both margins are equal, so that the middle stays where it is.
        margin = (long - window) // 2
        if margin <= 0:
            return image
        return image.crop((margin, 0, long - margin, short) if wide else (0, margin, short, long - margin))
    target = _get(size, "width" if wide else "height")
    if 0 < target < long:
        # The kernel grows with the factor; averages of whole pixels come first where it would exceed `EXACT_FACTOR`.
        shape = (target, short) if wide else (short, target)
        return image.resize(shape, processor.resample, reducing_gap=EXACT_FACTOR)
    return image


def _get(size: Any, key: str) -> int:
    """Return one entry of a processor's size, a dictionary or an object with these attributes; 0 without it."""
    return (size.get(key) if isinstance(size, dict) else getattr(size, key, None)) or 0

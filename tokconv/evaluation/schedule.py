"""The learning rate of every network that an evaluation trains."""

from __future__ import annotations

import math


def warmed_cosine(step: int, steps: int) -> float:
    """Return the share of the highest rate: it rises over the first tenth of the steps and falls to 0 with a cosine."""
    return min(1.0, 10 * (step + 1) / steps) * (1 + math.cos(math.pi * step / steps)) / 2

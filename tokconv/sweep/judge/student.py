"""The quantile of Student's t, in plain Python: importing SciPy's takes as long as `tokconv status` otherwise does.

By Abramowitz and Stegun, Handbook of Mathematical Functions (1964), 26.7.3 and 26.7.4, for whole degrees of freedom.
"""

from __future__ import annotations

import math
from functools import lru_cache


@lru_cache(maxsize=64)
def two_sided_quantile(level: float, degrees: int) -> float:
    """Return t such that a variable of Student's distribution lies within -t and t with a probability of `level`.

    Args:
        level: above 0 and below 1.
        degrees: degrees of freedom, at least 1.
    """
    low, high = 0.0, math.pi / 2
    # Halved until two neighbouring numbers are left.
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if _within(middle, degrees) < level else (low, middle)
    return math.sqrt(degrees) * math.tan(high)


def _within(angle: float, degrees: int) -> float:
    """Return the probability of the interval up to t = sqrt(degrees) * tan(angle), on both sides."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term = cosine if odd else 1.0
    total = 0.0
    for step in range(2 + odd, degrees + 1, 2):
        total += term
        term *= cosine**2 * (step - 1) / step
    return 2 / math.pi * (angle + sine * total) if odd else sine * total

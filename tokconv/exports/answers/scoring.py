"""When an answer is right, and how sure a share is."""

from __future__ import annotations

import math
import re

Z = 1.959963984540054
"""The 97.5 % quantile of the standard normal distribution."""


def words(answer: str) -> tuple[str, ...]:
    """Return the words of an answer in lower case, each digit a word: `3, 7.`, `37` and `3 7` are the same answer."""
    return tuple(re.findall(r"\d|[^\W\d_]+", answer.casefold()))


def is_same(answer: str, wanted: str) -> bool:
    """Return whether two answers have the same words in the same order."""
    return words(answer) == words(wanted)


def interval(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % interval of a share by Wilson (1927), which holds near 0 and 1 and for few questions.

    Raises:
        ValueError: there are no questions, or more successes than questions.

    Example:
        >>> [round(bound, 4) for bound in interval(8, 10)]
        [0.4902, 0.9433]
    """
    if not 0 <= successes <= count or count == 0:
        raise ValueError(f"{successes} successes in {count} questions have no interval")
    share, per = successes / count, Z * Z / count
    centre, half = share + per / 2, Z * math.sqrt(share * (1 - share) / count + per / (4 * count))
    low, high = (centre - half) / (1 + per), (centre + half) / (1 + per)
    return (0.0 if successes == 0 else max(0.0, low)), (1.0 if successes == count else min(1.0, high))

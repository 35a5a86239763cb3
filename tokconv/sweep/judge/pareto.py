"""Points to minimise: non-dominated sorting and crowding (Deb et al. 2002, NSGA-II, III-A and III-B), hypervolume."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Return whether a is at least as low as b everywhere and lower somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def ranks(points: Sequence[Point]) -> list[int]:
    """Return the front number of each point: 0 if nothing dominates it, 1 if only points of front 0 do, and so on.

    A figure that is not a number is worse than any that is.
    """
    if not points:
        return []
    # Imported here: numpy is a third of a second, and `tokconv status` needs none of it.
    import moocore
    import numpy as np

    return [int(rank) for rank in moocore.pareto_rank(np.nan_to_num(np.array(points, dtype=float), nan=np.inf))]


def on_front(pairs: Sequence[tuple[float, float]]) -> list[bool]:
    """Return whether nothing dominates each pair, that is whether it has rank 0; equal pairs share their place."""
    # As in `ranks`: what is not a number is worse than infinity.
    plain = [tuple(math.inf if math.isnan(x) else min(x, sys.float_info.max) for x in pair) for pair in pairs]
    front, lowest, place = [False] * len(plain), math.inf, None
    for i in sorted(range(len(plain)), key=plain.__getitem__):
        # All that came before are at most as high on the first axis.
        front[i] = plain[i] == place or plain[i][1] < lowest or place is None
        if front[i]:
            place, lowest = plain[i], plain[i][1]
    return front


def crowding(points: Sequence[Point]) -> list[float]:
    """Return the crowding distance of each point among these: infinite at the ends of an axis, small in a crowd."""
    distance = [0.0] * len(points)
    for axis in range(len(points[0]) if points else 0):
        order = sorted(range(len(points)), key=lambda i: points[i][axis])
        spread = points[order[-1]][axis] - points[order[0]][axis]
        distance[order[0]] = distance[order[-1]] = float("inf")
        for before, i, after in zip(order, order[1:], order[2:], strict=False):
            if spread > 0:
                distance[i] += (points[after][axis] - points[before][axis]) / spread
    return distance


def hypervolume(points: Sequence[Point], reference: Point) -> float:
    """Return the volume that points dominate, up to the reference (Zitzler and Thiele 1998); 0 without points.

    A point that is not below the reference on every axis dominates none of it.
    """
    if not points:
        return 0.0
    import moocore
    import numpy as np

    return float(moocore.hypervolume(np.array(points, dtype=float), ref=reference))

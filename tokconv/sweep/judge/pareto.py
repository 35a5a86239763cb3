"""Points to minimise: non-dominated sorting (Deb et al. 2002, NSGA-II, section III-A and III-B), hypervolume."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from functools import partial

Point = Sequence[float]


def dominates(a: Point, b: Point) -> bool:
    """Whether a is at least as low as b everywhere and lower somewhere."""
    return all(x <= y for x, y in zip(a, b, strict=True)) and any(x < y for x, y in zip(a, b, strict=True))


def ranks(points: Sequence[Point]) -> list[int]:
    """Front number of each point: 0 when nothing dominates it, 1 when only points of front 0 do, and so on.

    Points are placed in ascending order, so that only points placed before can dominate one; and what a front
    dominates, every earlier front does too, so that the front of a point is found by bisection (Zhang et al. 2015,
    ENS-BS).
    """
    if points and len(points[0]) == 2 and all(x == x and y == y for x, y in points):  # no NaN, which has no place
        return _ranks_of_pairs(points)
    found = [0] * len(points)
    fronts: list[list[Point]] = []
    for i in sorted(range(len(points)), key=lambda i: tuple(points[i])):
        found[i] = bisect_left(fronts, True, key=partial(_admits, point=points[i]))
        if found[i] == len(fronts):
            fronts.append([])
        fronts[found[i]].append(points[i])
    return found


def _ranks_of_pairs(points: Sequence[Point]) -> list[int]:
    """The same in two dimensions, in O(n log n): the last member of a front is its lowest, so it alone decides."""
    found = [0] * len(points)
    lowest: list[float] = []
    before: tuple[float, ...] | None = None
    rank = 0
    for point, i in sorted((tuple(point), i) for i, point in enumerate(points)):
        # Equal points dominate each other nowhere, and stand next to each other.
        if point != before:
            before, rank = point, bisect_right(lowest, point[1])
            lowest[rank : rank + 1] = [point[1]]
        found[i] = rank
    return found


def _admits(front: Sequence[Point], point: Point) -> bool:
    return not any(dominates(member, point) for member in reversed(front))


def crowding(points: Sequence[Point]) -> list[float]:
    """Crowding distance of each point among these: infinite at the ends of an axis, small in a crowd."""
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
    """Area that two-dimensional points dominate, up to the reference (Zitzler and Thiele 1998); 0 without points.

    A point that is not below the reference on both axes dominates nothing of it.
    """
    area, ceiling = 0.0, reference[1]
    for x, y in sorted(tuple(point) for point in points):
        if x < reference[0] and y < ceiling:
            area += (reference[0] - x) * (ceiling - y)
            ceiling = y
    return area

"""Non-dominated sorting against its definition."""

from __future__ import annotations

import math
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from tokconv.sweep.pareto import crowding, dominates, ranks

# Few distinct values, so that ties and duplicates occur all the time.
COORDINATE = st.integers(0, 6).map(float)


def points(dim: int) -> st.SearchStrategy[list[tuple[float, ...]]]:
    return st.lists(st.tuples(*[COORDINATE] * dim), max_size=30)


POINTS = st.integers(1, 3).flatmap(points)


@given(POINTS)
def test_rank_is_one_more_than_the_highest_rank_that_dominates(found: list[tuple[float, ...]]) -> None:
    assigned = ranks(found)
    for point, rank in zip(found, assigned, strict=True):
        above = [r for other, r in zip(found, assigned, strict=True) if dominates(other, point)]
        assert rank == max(above, default=-1) + 1


@given(POINTS, st.randoms(use_true_random=False))
def test_ranks_do_not_depend_on_the_order(found: list[tuple[float, ...]], random: Random) -> None:
    order = list(range(len(found)))
    random.shuffle(order)
    assigned = ranks(found)
    assert ranks([found[i] for i in order]) == [assigned[i] for i in order]


@given(st.lists(st.tuples(COORDINATE, COORDINATE), min_size=2, max_size=2))
def test_nothing_dominates_what_dominates_it(pair: list[tuple[float, float]]) -> None:
    a, b = pair
    assert not dominates(a, a)
    assert not (dominates(a, b) and dominates(b, a))


def test_ranks_of_nothing() -> None:
    assert ranks([]) == []


@given(points(2))
def test_crowding_is_infinite_at_the_ends_of_every_axis(found: list[tuple[float, ...]]) -> None:
    distance = crowding(found)
    assert len(distance) == len(found)
    assert all(d >= 0 for d in distance)
    for axis in range(2 if found else 0):
        for end in (min, max):
            extreme = end(p[axis] for p in found)
            assert any(math.isinf(d) for d, p in zip(distance, found, strict=True) if p[axis] == extreme)


def test_crowding_is_the_size_of_the_gap_around_a_point() -> None:
    assert crowding([(0.0, 8.0), (1.0, 7.0), (2.0, 6.0), (8.0, 0.0)])[1:3] == [0.5, 1.75]

"""Non-dominated sorting and hypervolume against their definitions."""

from __future__ import annotations

import math
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokconv.sweep.judge.pareto import crowding, dominates, hypervolume, on_front, ranks

# Few distinct values, so that ties and duplicates are frequent.
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


def test_a_figure_that_is_not_a_number_is_worse_than_any_other() -> None:
    assert ranks([(math.nan, 0.0), (1.0, 1.0), (0.0, 0.0)]) == [1, 1, 0]
    assert ranks([(math.nan, math.nan), (math.inf, 1.0), (2.0, 2.0)]) == [1, 0, 0]


EXTREME = st.one_of(COORDINATE, st.sampled_from([math.nan, math.inf]))


@given(st.lists(st.tuples(EXTREME, EXTREME), max_size=12))
def test_a_pair_is_on_the_front_if_its_rank_is_zero(found: list[tuple[float, float]]) -> None:
    assert on_front(found) == [rank == 0 for rank in ranks(found)]


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


@given(points(2), st.tuples(COORDINATE, COORDINATE))
def test_hypervolume_counts_the_unit_cells_that_a_point_dominates(
    found: list[tuple[float, ...]], reference: tuple[float, float]
) -> None:
    """With whole numbers an area is a number of unit squares."""
    cells = [(x, y) for x in range(int(reference[0])) for y in range(int(reference[1]))]
    expected = sum(any(px <= x and py <= y for px, py in found) for x, y in cells)
    assert hypervolume(found, reference) == expected


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0, 1)), max_size=8))
def test_hypervolume_agrees_with_inclusion_and_exclusion(found: list[tuple[float, float]]) -> None:
    """The area is that of the union of the boxes from each point to (1, 1)."""
    expected = 0.0
    for chosen in range(1, 2 ** len(found)):
        members = [point for i, point in enumerate(found) if chosen >> i & 1]
        corner = [max(values) for values in zip(*members, strict=True)]
        expected -= (-1) ** len(members) * (1 - corner[0]) * (1 - corner[1])
    assert hypervolume(found, (1.0, 1.0)) == pytest.approx(expected, abs=1e-9)

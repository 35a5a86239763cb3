"""The ranges of searched keys: their members, their nearest values, the points of a grid."""

from __future__ import annotations

from typing import Any

from hypothesis import given, settings
from support.specs import MINIMAL, ranges

from tokconv.sweep.search.space import grid_points
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range, parse_range


@given(ranges())
@settings(max_examples=15)
def test_the_nearest_value_lies_in_the_range_and_equals_a_value_that_does(search: dict[str, Any]) -> None:
    for key, raw in search.items():
        found = parse_range(key, raw)
        for value in (*found.values, None, 0, 1.5, -7, 10**9):
            nearest = found.nearest(value)
            assert _holds(found, nearest)
            if value is not None and _holds(found, value):
                assert nearest == value


def _holds(found: Range, value: Any) -> bool:
    if found.kind == "choice":
        return value in found.values
    low, high = found.values
    return value is not None and low <= value <= high and (found.kind != "int" or value == int(value))


def test_members_of_an_int_range_are_all_its_numbers() -> None:
    assert parse_range("training.n_critic", {"int": [2, 5]}).members() == range(2, 6)
    tree = {**MINIMAL, "search": {GRID_KEY: {"int": [3, 5]}}}
    assert parse_spec(tree).grids() == (3, 4, 5)
    assert parse_spec({**MINIMAL, "search": {GRID_KEY: {"choice": [8, 4]}}}).grids() == (4, 8)
    assert parse_spec({**MINIMAL, "base": [f"{GRID_KEY}=7"]}).grids() == (7,)


def test_choices_are_of_the_type_that_their_key_has() -> None:
    weights = parse_range("loss.weights.wgan", {"choice": [0, "1e-3", 0.5]}).values
    assert weights == (0.0, 0.001, 0.5)
    assert all(isinstance(value, float) for value in weights)


def test_a_grid_holds_every_combination_once() -> None:
    search = {GRID_KEY: {"choice": [4, 8]}, "training.n_critic": {"int": [1, 3]}}
    points = grid_points(parse_spec({**MINIMAL, "search": search, "sampler": {"kind": "grid"}}))
    assert len(points) == 6
    assert {tuple(point.values()) for point in points} == {(k, n) for k in (4, 8) for n in (1, 2, 3)}

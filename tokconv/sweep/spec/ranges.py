"""Ranges: where the values of a searched key may lie.

In a spec: `{choice: [4, 6, 8]}`, `{int: [1, 10]}`, `{float: [0.0, 1.0]}` or `{log: [0.1, 100]}`; both ends included.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tokconv.config.checks import check_key
from tokconv.config.keys import KEYS, get
from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.errors import ConfigError, SpecError, suggest

KINDS = ("choice", "int", "float", "log")


@dataclass(frozen=True)
class Range:
    """The range of a searched key: `values` are the choices, or the two ends."""

    key: str
    kind: str
    values: tuple[Any, ...]

    def members(self) -> Sequence[Any]:
        """Return every choice, every whole number of an int range, or the two ends."""
        return range(self.values[0], self.values[1] + 1) if self.kind == "int" else self.values

    @property
    def count(self) -> int:
        """How many `members` there are; Python's len() ends at 2^63."""
        return self.values[1] - self.values[0] + 1 if self.kind == "int" else len(self.values)

    def holds(self, value: Any) -> bool:
        """Return whether a trial with this value belongs to the range."""
        if self.kind == "choice":
            return value in self.values
        return isinstance(value, int | float) and self.values[0] <= value <= self.values[1]

    def within(self, other: Range) -> bool:
        """Return whether another range of the same key contains this one."""
        return self.kind == other.kind and all(other.holds(value) for value in self.values)

    def nearest(self, value: Any) -> Any:
        """Return the value if the range holds it, else the nearest one or the first choice; for None the lower end."""
        if self.kind == "choice":
            return value if value in self.values else self.values[0]
        low, high = self.values
        if value is None:
            return low
        return min(max(round(value) if self.kind == "int" else value, low), high)


def parse_range(key: str, raw: Any) -> Range:
    """Return one checked entry of `search`.

    Raises:
        SpecError: an unknown key or kind, a reversed or empty range, or a value that the key cannot have.
    """
    try:
        check_key(key)
    except ConfigError as error:
        raise SpecError(f"search: {error}") from error
    if not isinstance(raw, Mapping) or len(raw) != 1:
        raise SpecError(f"search.{key}: got {raw!r}; write one of {_forms()}")
    kind, values = next(iter(raw.items()))
    if kind not in KINDS:
        raise SpecError(f"search.{key}: {kind!r} is not a kind of range; {suggest(str(kind), KINDS)}")
    if not isinstance(values, list) or not values:
        raise SpecError(f"search.{key}.{kind}: got {values!r}; write a list, as in {_forms()}")
    if kind != "choice":
        _check_ends(key, kind, values)
    members = [_as_member(key, value) for value in values]
    if kind == "choice" and len(set(map(repr, members))) != len(members):
        raise SpecError(f"search.{key}.choice: a value is listed twice in {values!r}")
    return Range(key, kind, tuple(values if kind == "int" else members))


def _check_ends(key: str, kind: str, values: list[Any]) -> None:
    wanted = int if kind == "int" else (int, float)
    if len(values) != 2 or any(isinstance(v, bool) or not isinstance(v, wanted) for v in values):
        raise SpecError(f"search.{key}.{kind}: got {values!r}; write two numbers, [lowest, highest]")
    low, high = values
    if low >= high:
        raise SpecError(f"search.{key}.{kind}: got {values!r}; the lower end must come first, as in [{high}, {low}]")
    if kind == "log" and low <= 0:
        raise SpecError(f"search.{key}.log: got {values!r}; both ends of a log range must be greater than 0")
    annotation = str(KEYS[key])
    if "int" not in annotation and "float" not in annotation:
        raise SpecError(f"search.{key}.{kind}: this key holds no numbers; write {{choice: [...]}}")
    if "float" not in annotation and kind != "int":
        raise SpecError(f"search.{key}.{kind}: this key holds whole numbers; write {{int: {values!r}}}")


def _as_member(key: str, value: Any) -> Any:
    """Return the value as this key holds it.

    Beside these two, every value of the other keys is allowed. Which values go together with a spec's base is checked
    point by point.
    """
    allowing = {"model.compressor.kind": "residual", "loss.vlm.model": "any"}
    try:
        return get(with_values(Config(), {**allowing, key: value}), key)
    except ConfigError as error:
        raise SpecError(f"search.{error}") from error


def _forms() -> str:
    return "{choice: [4, 6, 8]}, {int: [1, 10]}, {float: [0.0, 1.0]}, {log: [0.1, 100]}"

"""What the value of a key may be; `tokconv.config.tree` puts one of these next to every key that needs it."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Bound:
    """The allowed values of a key, in words and as a check."""

    rule: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


def one_of(*choices: Any, note: str = "") -> Bound:
    return Bound(f"allowed: {', '.join(str(c).lower() for c in choices)}{note}", choices=choices)


def at_least(low: float) -> Bound:
    return Bound(f"must be at least {low:g}", low=low)


def above(low: float) -> Bound:
    return Bound(f"must be greater than {low:g}", low=low, open_low=True)


def key(default: Any, bound: Bound) -> Any:
    """Declare a key of the config: a dataclass field with this default and bound."""
    return dataclasses.field(default=default, metadata={"bound": bound})

"""The dotted keys of the config tree: their types and bounds, and a config read by them or as plain dictionaries."""

from __future__ import annotations

import dataclasses
import operator
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from tokconv.config.bounds import Bound
from tokconv.config.sources import SOURCES
from tokconv.config.tree import Config

GROUPS = {"data": tuple(SOURCES), "recipe": ("published",)}
"""Group of `tokconv/config/groups` -> its choices, as in data=folder; a key that is given beside a choice wins."""


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any, Bound | None]]:
    """Yield dotted key, type and bound of every key below a dataclass."""
    types = typing.get_type_hints(cls)
    for item in dataclasses.fields(cls):
        annotation = types[item.name]
        if dataclasses.is_dataclass(annotation):
            yield from _leaves(typing.cast(type, annotation), f"{prefix}{item.name}.")
        else:
            yield f"{prefix}{item.name}", annotation, item.metadata.get("bound")


KEYS: dict[str, Any] = {name: annotation for name, annotation, _ in _leaves(Config)}
"""Every dotted key and its type."""
BOUNDS: dict[str, Bound] = {name: bound for name, _, bound in _leaves(Config) if bound is not None}
"""The dotted keys with bounds."""


def get(config: Config, key: str) -> Any:
    """Return the value at a dotted key."""
    return operator.attrgetter(key)(config)


def to_dict(config: Config) -> dict[str, Any]:
    """Return plain nested dictionaries, ready for JSON; `tokconv.config.overrides.from_dict` is the inverse."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return nested dictionaries as one dictionary of dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat

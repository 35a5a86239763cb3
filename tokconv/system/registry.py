"""A table of named kinds: the only way from a name in a config or on a command line to what it stands for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NoReturn, TypeVar

from tokconv.errors import ConfigError, suggest

T = TypeVar("T")


class Registry(dict[str, T]):
    """A dictionary from names to entries, in which an unknown name raises ConfigError.

    Args:
        key: the config key or command-line option that holds such a name; error messages quote it.
        entries: what each name stands for.

    Example:
        >>> Registry("model.critic.kind", {"grid": 1})["gird"]
        Traceback (most recent call last):
        tokconv.errors.ConfigError: model.critic.kind: got 'gird'; did you mean grid?
    """

    def __init__(self, key: str, entries: Mapping[str, T]) -> None:
        super().__init__(entries)
        self.key = key

    def __missing__(self, name: str) -> NoReturn:
        raise ConfigError(f"{self.key}: got {name!r}; {suggest(str(name), self)}")

"""One table of named kinds, the only way from a name in a config or on a command line to what it stands for."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TypeVar

from tokconv.errors import ConfigError, suggest

T = TypeVar("T")


class Registry(Mapping[str, T]):
    """A read-only mapping from names to entries, in the order in which they were added.

    Args:
        key: the config key or command-line option that holds such a name; error messages quote it.
        entries: the first entries.

    Example:
        >>> Registry("model.critic.kind", {"grid": 1})["gird"]
        Traceback (most recent call last):
        tokconv.errors.ConfigError: model.critic.kind: got 'gird'; did you mean grid?
    """

    def __init__(self, key: str, entries: Mapping[str, T] | None = None) -> None:
        self.key = key
        self._entries: dict[str, T] = {}
        for name, entry in (entries or {}).items():
            self.add(name, entry)

    def add(self, name: str, entry: T) -> T:
        """Add an entry and return it. Raises ValueError if the name is taken."""
        if name in self._entries:
            raise ValueError(f"{self.key}: {name!r} is registered twice")
        self._entries[name] = entry
        return entry

    def __getitem__(self, name: str) -> T:
        """Return the entry. Raises ConfigError, with the nearest name or all of them, if there is none; so does `get`."""
        if name not in self._entries:
            raise ConfigError(f"{self.key}: got {name!r}; {suggest(str(name), self._entries)}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

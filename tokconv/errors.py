"""The errors that tokconv raises for its users. `except TokconvError` catches all of them.

The tree, and when each error is raised:

    TokconvError                 any of the below; the command line prints its sentence and exits with code 2
      ConfigError                a config or an override has a wrong key, type or value
        SpecError                a sweep spec has one
      DataError                  images or an encoder cannot be found or read
      StoreError                 a token store is missing, damaged, or was made by another encoder
      StorageError               object storage does not answer, refuses, or lacks an object
      CheckpointError            a checkpoint or an exported compressor cannot be used here
      MissingExtraError          an optional dependency is not installed; the message holds the pip command
      ClusterError               a Ray cluster does not answer, refuses, or does not work
      SweepError                 a sweep cannot start or go on
      DivergedError              a loss or gradient is not finite; raised before the update, ends a trial but no sweep
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
from collections.abc import Iterable
from types import ModuleType


class TokconvError(Exception):
    """Base of every error that tokconv raises on purpose. Its text is one line, whatever names it quotes."""

    def __str__(self) -> str:
        return printable(super().__str__())


class ConfigError(TokconvError, ValueError):
    """A config key, type or bound is wrong."""


class SpecError(ConfigError):
    """A sweep spec is wrong."""


class DataError(TokconvError, ValueError):
    """Images or an encoder cannot be found or read."""


class StoreError(TokconvError, ValueError):
    """A token store is missing, damaged, or was made by another encoder."""


class StorageError(TokconvError, OSError):
    """Object storage does not answer, refuses, or lacks an object that should exist."""


class CheckpointError(TokconvError, ValueError):
    """A checkpoint or an exported compressor does not fit or is damaged."""


class MissingExtraError(TokconvError, ImportError):
    """An optional dependency is not installed."""


class ClusterError(TokconvError, RuntimeError):
    """A Ray cluster does not answer, refuses, or does not work."""


class SweepError(TokconvError, RuntimeError):
    """A sweep cannot start or go on."""


class DivergedError(TokconvError, ArithmeticError):
    """A loss or gradient is not finite; nothing was updated."""

    def __init__(self, term: str, step: int) -> None:
        super().__init__(term, step)
        self.term, self.step = term, step

    def __str__(self) -> str:
        return f"{self.term} is not finite at step {self.step}; lower training.learning_rate or the weight of that loss"


def printable(value: object) -> str:
    """Return a text on one line in which nothing acts on a terminal: a name, a path or another library's message.

    What `str.isprintable` refuses is escaped as in `repr`: line breaks, control characters, the escape that begins
    colours and cursor movements, reversed reading directions, and bytes of a file name that are no UTF-8. All names
    that do not come from tokconv itself go through here before they are printed, reported or tracked.

    Example:
        >>> printable("photo\x1b[2J.png")
        'photo\\x1b[2J.png'
    """
    text = str(value)
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape", "surrogatepass").decode("ascii")
        for letter in text
    )


def first_line(error: BaseException) -> str:
    """Return the first line of another library's error, to be quoted in a sentence; its type's name if it is empty."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def suggest(name: str, allowed: Iterable[str]) -> str:
    """Return the end of a "did you mean" sentence: the closest allowed name, or all names if none is close."""
    names = sorted(allowed)
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.6)
    return f"did you mean {close[0]}?" if close else f"allowed: {', '.join(names)}"


def require_extra(extra: str, *modules: str) -> None:
    """Check that an extra's modules are installed, without importing them. Raises MissingExtraError."""
    for module in modules:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(f"{module} is not installed; run: pip install 'tokconv[{extra}]'")


def import_extra(module: str, extra: str) -> ModuleType:
    """Import and return an optional dependency.

    Raises:
        MissingExtraError: the module is not installed; the message names the extra that installs it.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] != module.split(".")[0]:
            raise
        raise MissingExtraError(f"{module} is not installed; run: pip install 'tokconv[{extra}]'") from error

"""Paths in URIs. Every path that goes into one is quoted here, so that a folder may have any printable name."""

from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import quote, unquote

from tokconv.errors import ConfigError

SQLITE, FILE = "sqlite:///", "file://"
WITH_DRIVER = "sqlite+pysqlite:///"


def quoted(path: str | os.PathLike[str]) -> str:
    """Return a path, made absolute, as the path of a URI.

    Raises:
        ConfigError: its bytes are not UTF-8, which readers of URIs replace.

    Example:
        >>> quoted("/data/100% #1")
        '/data/100%25%20%231'
    """
    whole = str(Path(path).resolve())
    try:
        return quote(whole)
    except UnicodeEncodeError as error:
        raise ConfigError(f"{whole!r}: this name is not UTF-8, so no URI can hold it; rename the folder") from error


def file_uri(path: str | os.PathLike[str]) -> str:
    """Return `file:///...` of a path. Raises as `quoted`."""
    return FILE + quoted(path)


def sqlite_uri(path: str | os.PathLike[str]) -> str:
    """Return the URI of a SQLite database for MLflow and SQLAlchemy. Raises as `quoted`."""
    name = quoted(path)
    # SQLAlchemy unquotes the path. MLflow, which creates the parent folder, does not (3.17): it would leave an empty
    # `My%20Project` beside `My Project`. It leaves the parent folder alone if the driver is named.
    return (SQLITE if name == unquote(name) else WITH_DRIVER) + name


def path_of(uri: str) -> Path:
    """Return the path in a URI of `file_uri` or `sqlite_uri`, or in one that a user wrote in their form."""
    rest = uri.partition("://")[2] if uri.startswith(FILE) else uri.partition(":///")[2]
    return Path(unquote(rest.partition("?")[0]))


def without_credentials(text: str) -> str:
    """Return a text that is safe to print: `//user:password@host` becomes `//host`."""
    return re.sub(r"//[^/@\s]+@", "//", text)

"""Figures that depend on a token store alone: computed once, kept beside it, read back."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock

from tokconv.errors import StoreError
from tokconv.system.files import write_json

Rows = dict[str, dict[str, float]]
"""Finite figures by row and name."""


def kept_figures(path: Path, key: str, origin: Mapping[str, Any], compute: Callable[[], Rows]) -> Rows:
    """The figures in a JSON file, computed when it does not exist (one process computes, others wait).

    Args:
        path: the file; everything that its figures depend on belongs into its name or into `origin`.
        key: where in the file they stand, beside what `origin` says.
        origin: what they were computed from.

    Raises:
        StoreError: the file is damaged, or of another origin.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            write_json(path, {**origin, key: compute()})
        return _read(path, key, origin)


def _read(path: Path, key: str, origin: Mapping[str, Any]) -> Rows:
    advice = "remove it and it is computed again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            name: {figure: float(value) for figure, value in figures.items()}
            for name, figures in found.pop(key).items()
        }
        if not rows or not all(math.isfinite(value) for row in rows.values() for value in row.values()):
            raise ValueError("figures are missing or not finite")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged; {advice}") from error
    if found != origin:
        raise StoreError(f"{path}: holds figures of {found}, not of {dict(origin)}; {advice}")
    return rows

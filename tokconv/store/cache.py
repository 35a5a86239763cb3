"""Computed once beside a store: what depends on the store alone is computed by one process and read by all others.

Fits, probes, relations of images and figures are stored in the store's `derived/` folder with the store's fingerprint.
What a store with another fingerprint left there, after the folder was copied for instance, is never read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokconv.errors import StoreError, first_line
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path

T = TypeVar("T")
Origin = Mapping[str, Any]
Rows = dict[str, dict[str, float]]
"""Finite figures by row and name."""
ADVICE = "remove it and it is computed again"
DAMAGE = (OSError, SafetensorError, ValueError, TypeError, KeyError, AttributeError, RecursionError)
"""What reading a damaged file raises."""


class FileFormat(Protocol[T]):
    """How a value and its origin are written to a file and read back."""

    def write(self, path: Path, value: T, origin: Origin) -> None:
        """Write both."""

    def read(self, path: Path) -> tuple[T, Origin]:
        """Read both. Raises one of `DAMAGE` if the file does not hold them."""


@dataclass(frozen=True)
class JsonFigures:
    """Rows of finite figures in a JSON file, next to the entries of their origin.

    Args:
        key: the entry that holds the rows.
    """

    key: str

    def write(self, path: Path, value: Rows, origin: Origin) -> None:
        path.write_text(json.dumps({**origin, self.key: value}, indent=2, allow_nan=False) + "\n", encoding="utf-8")

    def read(self, path: Path) -> tuple[Rows, Origin]:
        origin = json.loads(path.read_text(encoding="utf-8"))
        rows = {
            name: {figure: float(value) for figure, value in figures.items()}
            for name, figures in origin.pop(self.key).items()
        }
        if not rows or not all(math.isfinite(value) for row in rows.values() for value in row.values()):
            raise ValueError("figures are missing or not finite")
        return rows, origin


class Tensors:
    """Tensors by name in a safetensors file, whose metadata is the origin (strings only). They stay on disk until they
    are used."""

    def write(self, path: Path, value: Mapping[str, Tensor], origin: Origin) -> None:
        save_file({name: tensor.contiguous() for name, tensor in value.items()}, path, dict(origin))

    def read(self, path: Path) -> tuple[Mapping[str, Tensor], Origin]:
        with safe_open(path, framework="pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
            return tensors, file.metadata() or {}


def has_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Callable[[Mapping[str, Tensor]], None]:
    """Return a check that the tensors are these, by name and shape; it does not read the values."""

    def check(tensors: Mapping[str, Tensor]) -> None:
        if {name: tuple(tensor.shape) for name, tensor in tensors.items()} != shapes:
            raise ValueError("tensors are missing, unknown or of another shape")

    return check


def computed_once(
    store: TokenStore,
    name: str,
    compute: Callable[[], T],
    form: FileFormat[T],
    *,
    origin: Origin | None = None,
    check: Callable[[T], None] = lambda value: None,
) -> T:
    """Return what a file next to a store holds; compute and write it first if there is no such file.

    One process computes, others wait for it. The file appears whole or not at all.

    Args:
        name: of the file. All that its content depends on belongs into the name or into `origin`.
        form: how the file is written and read.
        origin: what the value was computed from; the store's fingerprint is added to it.
        check: raises ValueError for a value that the file should not hold.

    Raises:
        StoreError: the file is damaged, or has another origin.
    """
    path, wanted = store.derived_dir / name, {**(origin or {}), "store": store.fingerprint}
    # A store that is full of what it needs may be read-only.
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock"):
            if not path.is_file():
                with atomic_path(path) as temporary:
                    form.write(temporary, compute(), wanted)
    try:
        value, found = form.read(path)
    except DAMAGE as error:
        raise StoreError(f"{path}: damaged ({first_line(error)}); {ADVICE}") from error
    if found != wanted:
        others = [
            f"{key} {found.get(key)!r}, not {wanted.get(key)!r}"
            for key in {**wanted, **found}
            if found.get(key) != wanted.get(key)
        ]
        raise StoreError(f"{path}: was computed from something else ({'; '.join(others)}); {ADVICE}")
    try:
        check(value)
    except ValueError as error:
        raise StoreError(f"{path}: damaged ({error}); {ADVICE}") from error
    return value

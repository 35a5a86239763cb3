"""The token stores in a directory, finished or not, described from their index or settings alone."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tokconv.errors import StoreError
from tokconv.store.format import INDEX, SETTINGS, StoreSettings, read_json


@dataclass(frozen=True)
class ListedStore:
    """One store as a listing shows it."""

    path: Path
    source: str
    """The kind of the data, as `folder`."""
    encoder: str
    images: int
    """That were encoded; of an unfinished store, those to encode."""
    num_tokens: int
    dim: int
    dtype: str
    num_bytes: int
    """On disk, with what was computed from the store."""
    finished: bool


def list_stores(directory: Path) -> tuple[list[ListedStore], list[str]]:
    """Return the stores directly below a directory by name, or the directory if it is one itself.

    Of each that cannot be read there is a sentence.
    """
    found, unreadable = [], []
    for path in _places(directory):
        try:
            found.append(_listed(path))
        except StoreError as error:
            unreadable.append(str(error))
    return found, unreadable


def _places(directory: Path) -> Iterator[Path]:
    for path in [directory, *sorted(directory.glob("*"))]:
        if (path / INDEX).is_file() or (path / SETTINGS).is_file():
            yield path


def _listed(path: Path) -> ListedStore:
    finished = (path / INDEX).is_file()
    content = read_json(path / (INDEX if finished else SETTINGS))
    try:
        settings = StoreSettings.from_json(content["settings"] if finished else content)
        images = int(content["num_images"]) if finished else settings.num_items
        source, encoder = str(settings.source["name"]), str(settings.encoder["name"])
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: damaged ({error}); remove the directory and encode again") from error
    files = (file.lstat() for file in path.rglob("*") if file.is_file())
    return ListedStore(
        path=path,
        source=source,
        encoder=encoder,
        images=images,
        num_tokens=settings.num_tokens,
        dim=settings.dim,
        dtype=settings.dtype,
        num_bytes=sum(file.st_size for file in files),
        finished=finished,
    )

"""Photographs for tasks: any folder, or those that scikit-learn and scikit-image bring along."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from PIL import Image

from tokconv.encoding.sources.base import ImageItem
from tokconv.encoding.sources.bundled import PhotographsSource
from tokconv.encoding.sources.folder import FolderSource
from tokconv.errors import DataError
from tokconv.exports.answers.tasks import Split, hash_of, split_of

SPLITS: dict[str, Split] = {"train": "train", "val": "test"}
"""The splits of a source by the names that tasks have for them."""


def split_in(item: ImageItem) -> Split:
    """Return the split of an image: the one that its source declares, or that of its name."""
    return split_of(item.key) if item.split is None else SPLITS[item.split]


class Photographs:
    """The photographs of one split, by their place in it.

    Args:
        without: stems of files that are left out.
        mixed: sort by a hash of their names, so that the first ones are of all folders.

    A folder's own split is used if it declares one. The bundled photographs come whole and as quadrants; all views of
    one are in one split.

    Raises:
        DataError: the folder holds no images, or none of this split.
        MissingExtraError: without a folder, scikit-learn or scikit-image is not installed.
    """

    def __init__(
        self, folder: Path | None, split: Split, without: tuple[str, ...] = (), *, mixed: bool = False
    ) -> None:
        self._source = PhotographsSource() if folder is None else FolderSource(folder)
        self._chosen = [
            number
            for number, item in enumerate(self._source.items)
            if split_in(item) == split and item.key.partition("/")[0] not in without
        ]
        if mixed:
            self._chosen.sort(key=lambda number: hash_of(self._source.items[number].key))
        if not self._chosen:
            raise DataError(f"--tasks: {folder} has no {split} images; give a folder with more of them")

    def __len__(self) -> int:
        return len(self._chosen)

    def load(self, place: int) -> Image.Image:
        """Return a photograph in RGB."""
        image = self._source.load(self._chosen[place])
        assert isinstance(image, Image.Image)
        return image

    def content(self, place: int) -> bytes:
        """Return the digest of a photograph's file."""
        return self._source.content(self._chosen[place])

    def identity(self) -> dict[str, Any]:
        """Return JSON that is equal for the same photographs."""
        return self._source.identity()

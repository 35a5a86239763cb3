"""Folders of images, with and without classes and splits."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

from PIL import Image
from torch import Tensor

from tokconv.encoding.sources.base import ImageItem, basic_identity, content_digest, digest, file_stats, probes
from tokconv.encoding.sources.files import SUFFIXES, file_size, open_image
from tokconv.encoding.sources.layout import Part, arrange, find_files
from tokconv.encoding.sources.walk import count_suffixes
from tokconv.errors import DataError
from tokconv.system.files import local_path

WRAPPERS = ("images", "image", "imgs", "img", "jpegimages")
"""Names that a folder between a split and its images has without being a class, in lower case."""


class FolderSource:
    """Any folder of images.

    If there are images directly in `root`, all images below it are unlabelled; otherwise the first-level subfolders are
    the classes. Folders with the names of splits declare the split, and each of the two is read in this way; what lies
    beside them is left out (`tokconv.encoding.sources.layout`).

    Raises:
        DataError: the folder is missing or holds no images, splits cannot be told from classes, or only one of the two
            splits has classes.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = local_path(root)
        self.notes: tuple[str, ...] = ()
        if not self.root.is_dir():
            raise DataError(f"data.root: there is no folder {str(root)!r}; give the folder of the images")
        self.class_names, self.items = self._scan()

    def load(self, index: int) -> Image.Image:
        return open_image(self.root / self.items[index].key)

    def identity(self) -> dict[str, Any]:
        return basic_identity(self)

    def stats(self, indices: Sequence[int]) -> Tensor:
        return file_stats([f"{self.root}/{self.items[index].key}" for index in indices])

    def content(self, index: int) -> bytes:
        return content_digest(self.root / self.items[index].key)

    def probed_identity(self) -> dict[str, Any]:
        sizes = digest(file_size(self.root / item.key) for item in probes(self.items))
        return {**basic_identity(self), "sizes": sizes}

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        return self._classify(self._parts())

    def _parts(self) -> tuple[Part, ...]:
        """Return the images by split, and note what is not read. Raises DataError if there are none."""
        tree = find_files(self.root, SUFFIXES)
        if not tree.files:
            found = f", and there are only {count_suffixes(tree.ignored)}" if tree.ignored else ""
            raise DataError(
                f"data.root: no images in {str(self.root)!r}; it needs files such as .jpg, .png, .webp or .tif, at any "
                f"depth{found}"
            )
        layout = arrange(self.root, tree, "images")
        self.notes = layout.notes
        return layout.parts

    def _classify(self, parts: Sequence[Part]) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        """Return the class names and the items of all parts."""
        found = _classes(parts)
        classes = {name for part in found for name in part}
        if None in classes and len(classes) > 1:
            raise DataError(
                f"data.root: only one of {parts[0].name} and {parts[1].name} in {str(self.root)!r} has class folders; "
                "sort both the same way, or move the one without classes away"
            )
        names = tuple(sorted(name for name in classes if name is not None))
        numbers = {name: number for number, name in enumerate(names)}
        items = tuple(
            ImageItem(key, None if name is None else numbers[name], part.split)
            for part, names_of_part in zip(parts, found, strict=True)
            for key, name in zip(part.files, names_of_part, strict=True)
        )
        return names, items


class ImageNetSource(FolderSource):
    """The ImageNet layout, root/train/CLASS/** and root/val/CLASS/**; one of them alone declares no split.

    Raises:
        DataError: as `FolderSource`, or the folder has another layout.
    """

    name = "imagenet"

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        parts = self._parts()
        names, items = self._classify(parts)
        if not names or not parts[0].name:
            raise DataError(
                f"data.root: {str(self.root)!r} does not hold train/CLASS/ and val/CLASS/ folders of images; "
                "arrange it so, or use data.source=folder"
            )
        return names, items


def _classes(parts: Sequence[Part]) -> list[list[str | None]]:
    """Return the class of every image of every part; None for a whole part if images lie directly in it."""
    below = [[file[len(part.name) + 1 if part.name else 0 :] for file in part.files] for part in parts]
    # Archives often unpack to train/train/CLASS or train/images.
    while all(part.name and _is_wrapped(part.name, files) for part, files in zip(parts, below, strict=True)):
        below = [[file.partition("/")[2] for file in files] for files in below]
    return [
        [None] * len(files) if any("/" not in file for file in files) else [file.partition("/")[0] for file in files]
        for files in below
    ]


def _is_wrapped(part: str, files: Sequence[str]) -> bool:
    """Return whether all files lie in one folder that is no class, by its name."""
    tops = {file.partition("/")[0] if "/" in file else "" for file in files}
    return len(tops) == 1 and all(name == part or name.lower() in WRAPPERS for name in tops)

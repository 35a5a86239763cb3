"""Folders of images, with and without classes and splits."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from tokconv.encoding.sources.base import SPLITS, ImageItem, basic_identity, digest, probes
from tokconv.encoding.sources.files import (
    SUFFIXES,
    file_size,
    find_images,
    has_images,
    is_folder,
    list_folder,
    open_image,
)
from tokconv.errors import DataError


class FolderSource:
    """Any folder of images.

    If there are images directly in `root`, all images below it are unlabelled; otherwise the first-level subfolders are
    the classes. If the only subfolders are `train` and `val`, or one of them, each is read in this way, and the two
    together declare the split.

    Raises:
        DataError: the folder is missing or holds no images, or only one of train and val has classes.
    """

    name = "folder"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()
        if not self.root.is_dir():
            raise DataError(f"data.root: there is no folder {str(root)!r}; give the folder of the images")
        self.class_names, self.items = self._scan()
        if not self.items:
            raise DataError(
                f"data.root: no images in {str(root)!r}; it needs files ending in {', '.join(SUFFIXES)}, at any depth"
            )

    def load(self, index: int) -> Image.Image:
        return open_image(self.root / self.items[index].key)

    def identity(self) -> dict[str, Any]:
        # The sizes of some files distinguish data sets whose file names are equal. The path is left out, because a
        # folder may be moved.
        sizes = digest(file_size(self.root / item.key) for item in probes(self.items))
        return {**basic_identity(self), "sizes": sizes}

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        folders = {entry.name for entry in list_folder(self.root) if is_folder(entry)}
        has_splits = folders and folders <= set(SPLITS) and not has_images(self.root)
        parts = {part: find_images(self.root, self.root / part) for part in (sorted(folders) if has_splits else [""])}
        declared = len(parts) == len(SPLITS) and all(parts.values())
        classes = {name for found in parts.values() for _, name in found}
        if None in classes and len(classes) > 1:
            raise DataError(
                f"data.root: only one of train and val in {str(self.root)!r} has class folders; sort both the same way"
            )
        names = tuple(sorted(name for name in classes if name is not None))
        numbers = {name: number for number, name in enumerate(names)}
        items = tuple(
            ImageItem(key, None if name is None else numbers[name], split if declared else None)
            for split, found in parts.items()
            for key, name in found
        )
        return names, items


class ImageNetSource(FolderSource):
    """The ImageNet layout, root/train/CLASS/** and root/val/CLASS/**; one of them alone declares no split.

    Raises:
        DataError: the folder is missing, has another layout, or holds no images.
    """

    name = "imagenet"

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        names, items = super()._scan()
        if not names or items[0].key.split("/")[0] not in SPLITS:
            raise DataError(
                f"data.root: {str(self.root)!r} does not hold train/CLASS/ and val/CLASS/ folders of images; "
                "arrange it so, or use data.source=folder"
            )
        return names, items

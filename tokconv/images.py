"""Image sources: a named sequence of images, each with a key, perhaps a label and a split.

A source is small and picklable, so that worker processes can open the images.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image

from tokconv.config import DataConfig
from tokconv.errors import DataError, import_extra
from tokconv.imagefiles import SUFFIXES, file_size, find_images, has_images, list_folder, open_image

SPLITS = ("train", "val")
DIGITS_SEED = 0
# Another one: the permutation that splits the digits would choose training digits only.
SUBSET_SEED = 1
NUM_PROBES = 256

# A stereo pair would put one scene on both sides of the split, so only its left half is here; drawings, charts and
# synthetic images are left out.
FROM_SKLEARN = "china.jpg flower.jpg"
FROM_SKIMAGE = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
    "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg"
)
VIEWS = {
    "whole": (0, 0, 2, 2),
    "top-left": (0, 0, 1, 1),
    "top-right": (1, 0, 2, 1),
    "bottom-left": (0, 1, 1, 2),
    "bottom-right": (1, 1, 2, 2),
}
"""Left, top, right and bottom of a view, in halves of the photograph."""


@dataclass(frozen=True, slots=True)
class ImageItem:
    """One image of a source."""

    key: str
    """Unique in its source; the relative path for files."""
    label: int | None = None
    """Index into the source's class names."""
    split: str | None = None
    """train or val when the source declares it."""


class ImageSource(Protocol):
    """Where images come from."""

    @property
    def name(self) -> str: ...

    @property
    def class_names(self) -> tuple[str, ...]:
        """Empty when there are no labels."""
        ...

    @property
    def items(self) -> Sequence[ImageItem]: ...

    def load(self, index: int) -> Image.Image:
        """The image in RGB. Raises OSError, ValueError and others of Pillow's for one that cannot be read."""
        ...

    def identity(self) -> dict[str, Any]:
        """JSON; equal for two sources exactly when their tokens may share a store."""
        ...


def open_source(config: DataConfig) -> ImageSource:
    """The configured source; `data.subset` larger than the source means all of it.

    Raises:
        DataError: the folder is missing, holds no images, or lacks the ImageNet layout.
        MissingExtraError: a bundled source whose package is not installed.

    Example:
        >>> len(open_source(DataConfig(source="digits", subset=100)).items)
        100
    """
    source: ImageSource
    if config.source in ("digits", "photographs"):
        source = DigitsSource() if config.source == "digits" else PhotographsSource()
    else:
        source = (ImageNetSource if config.source == "imagenet" else FolderSource)(config.root or "")
    if config.subset is not None and config.subset < len(source.items):
        return SubsetSource(source, config.subset)
    return source


def assign_split(items: Sequence[ImageItem], val_fraction: float) -> list[str]:
    """train or val for each item: the declared split, else by a hash of its key.

    A hash keeps every image on its side when others are added. Each side gets at least one image.

    Raises:
        DataError: fewer than two images.
    """
    if len(items) < 2:
        raise DataError(f"data: {len(items)} readable images; at least 2 are needed, one to train on, one to hold out")
    draws = [_draw(item.key) for item in items]
    drawn = ["val" if draw < val_fraction else "train" for draw in draws]
    splits = [item.split or split for item, split in zip(items, drawn, strict=True)]
    if "val" not in splits:
        splits[draws.index(min(draws))] = "val"
    elif "train" not in splits:
        splits[draws.index(max(draws))] = "train"
    return splits


class FolderSource:
    """Any folder of images.

    Images directly in `root`, or none but deeper ones without a class: unlabelled, all below `root`. Otherwise the
    first-level subfolders are the classes. Subfolders `train` and `val` alone are read as `ImageNetSource` reads them,
    with or without classes.

    Raises:
        DataError: the folder is missing, holds no images, or only one of train and val has classes.
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
        # Sizes of some files tell data sets apart whose file names are equal; all of them would be slow on a network
        # disk. The path is no part of it: a folder may be moved.
        probes = self.items[:: max(1, len(self.items) // NUM_PROBES)]
        return {**_identity(self), "sizes": _digest(file_size(self.root / item.key) for item in probes)}

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        folders = {entry.name for entry in list_folder(self.root) if entry.is_dir()}
        if folders and folders <= set(SPLITS) and not has_images(self.root):
            parts = {split: find_images(self.root, self.root / split) for split in sorted(folders)}
            declared = len(parts) == len(SPLITS) and all(parts.values())
        else:
            parts = {"": find_images(self.root, self.root)}
            declared = False
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
    """The ImageNet layout, root/train/CLASS/** and root/val/CLASS/**; with one of them only, no split is declared.

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


class DigitsSource:
    """The 1,797 handwritten digits that ship with scikit-learn, 8 x 8 gray, 1,400 of them to train on.

    The split is the one that the bundled tower was trained with, so that its held-out digits stay held out.
    Raises MissingExtraError without scikit-learn.
    """

    name = "digits"
    class_names = tuple(str(digit) for digit in range(10))
    num_train = 1400

    def __init__(self) -> None:
        digits = import_extra("sklearn.datasets", "demo").load_digits()
        self._gray = np.rint(digits.images / 16 * 255).astype(np.uint8)
        order = torch.randperm(len(self._gray), generator=torch.Generator().manual_seed(DIGITS_SEED))
        train = set(order[: self.num_train].tolist())
        self.items = tuple(
            ImageItem(f"digit-{index:04d}", int(label), "train" if index in train else "val")
            for index, label in enumerate(digits.target)
        )

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self._gray[index]).convert("RGB")

    def identity(self) -> dict[str, Any]:
        return _identity(self)


class PhotographsSource:
    """Photographs that ship inside the scikit-learn and scikit-image wheels: each whole, and its four quadrants.

    Every fifth photograph is held out with all its views. No labels, no download.
    Raises MissingExtraError without scikit-learn or scikit-image.
    """

    name = "photographs"
    class_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        folders = {"sklearn": "datasets/images", "skimage": "data"}
        roots = {name: Path(str(import_extra(name, "demo").__file__)).parent / sub for name, sub in folders.items()}
        files = {"sklearn": FROM_SKLEARN, "skimage": FROM_SKIMAGE}
        paths = [roots[name] / file for name, text in files.items() for file in text.split()]
        paths = [path for path in paths if path.is_file()]
        self._views = [(path, box) for path in paths for box in VIEWS.values()]
        self.items = tuple(
            ImageItem(f"{path.stem}/{view}", split="val" if number % 5 == 1 else "train")
            for number, path in enumerate(paths)
            for view in VIEWS
        )

    def load(self, index: int) -> Image.Image:
        path, (left, top, right, bottom) = self._views[index]
        image = open_image(path)
        width, height = image.size
        return image.crop((left * width // 2, top * height // 2, right * width // 2, bottom * height // 2))

    def identity(self) -> dict[str, Any]:
        return _identity(self)


class SubsetSource:
    """The same `count` images of a source every time, in the source's order.

    When the source declares splits, at least one image of each is kept.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        self.source = source
        self.name, self.class_names = source.name, source.class_names
        generator = torch.Generator().manual_seed(SUBSET_SEED)
        order: list[int] = torch.randperm(len(source.items), generator=generator).tolist()
        chosen = order[:count]
        kept = {source.items[index].split for index in chosen}
        spare = next((i for i in order[count:] if source.items[i].split not in kept), None)
        if spare is not None:
            chosen[-1] = spare
        self._indices = sorted(chosen)
        self.items = tuple(source.items[index] for index in self._indices)

    def load(self, index: int) -> Image.Image:
        return self.source.load(self._indices[index])

    def identity(self) -> dict[str, Any]:
        return {**self.source.identity(), "subset": len(self.items)}


def _draw(key: str) -> float:
    """A fixed uniform number in [0, 1) for a key."""
    return int.from_bytes(hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()[:8]) / 2**64


def _identity(source: ImageSource) -> dict[str, Any]:
    keys = _digest(f"{item.key}\t{item.label}\t{item.split}" for item in source.items)
    return {"name": source.name, "count": len(source.items), "keys": keys}


def _digest(lines: Iterator[Any]) -> str:
    digest = hashlib.sha256()
    for line in lines:
        digest.update(f"{line}\n".encode("utf-8", "surrogateescape"))
    return digest.hexdigest()

"""The COCO layout (Lin et al. 2014, arXiv:1405.0312): folders of images, with or without annotations."""

from __future__ import annotations

import json
import math
import os
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokconv.encoding.sources.base import ImageItem
from tokconv.encoding.sources.files import SUFFIXES
from tokconv.encoding.sources.folder import FolderSource
from tokconv.encoding.sources.layout import lay_out
from tokconv.encoding.sources.splits import Splits
from tokconv.encoding.sources.walk import is_folder, list_folder, walk
from tokconv.errors import DataError

ANNOTATIONS = "annotations"
_PART = re.compile(r"(train|val)(?:idation)?(.*)")


class CocoSource(FolderSource):
    """COCO: root/train2017/*.jpg, root/val2017/*.jpg and, optionally, root/annotations/instances_*.json.

    The folders declare the split if both exist. The label of an image is the category with the greatest total annotated
    area in it (of equal ones, that with the lower id). The categories of two instances files are matched by name, since
    each file may number them in its own way. An image without annotations has no label, nor does any image of a folder
    without its instances file. Other folders are left out, and captions are ignored.

    Args:
        root: the folder that holds them.
        year: the part of the folders' names after train and val, if there are several.

    Raises:
        DataError: the folder is missing, has another layout, holds several years, or has damaged annotations.
    """

    name = "coco"

    def __init__(self, root: str | os.PathLike[str], *, year: str | None = None) -> None:
        self.year = year
        super().__init__(root)

    def _scan(self) -> tuple[tuple[str, ...], tuple[ImageItem, ...]]:
        folders = self._choose_folders()
        if not folders:
            raise DataError(
                f"data.root: {str(self.root)!r} does not hold COCO's folders of images, such as train2017 and val2017; "
                "arrange it so, or use data.source=folder"
            )
        beside = {entry.name for entry in list_folder(self.root) if is_folder(entry)} - {*folders.values(), ANNOTATIONS}
        splits = Splits(folders.get("train"), folders.get("val"), tuple(sorted(beside)))
        parts, self.notes = lay_out(walk(self.root, SUFFIXES, tuple(folders.values())), splits, "images")
        categories: dict[str, int] = {}
        found: list[tuple[str, str | None, str | None]] = []
        for part in parts:
            main_category = self._read(part.name, part.files, categories)
            found += [(key, main_category.get(key.removeprefix(f"{part.name}/")), part.split) for key in part.files]
        used = categories if any(category is not None for _, category, _ in found) else {}
        numbers = {name: number for number, name in enumerate(sorted(used, key=lambda name: (used[name], name)))}
        items = tuple(
            ImageItem(key, None if category is None else numbers[category], split) for key, category, split in found
        )
        return tuple(numbers), items

    def _choose_folders(self) -> dict[str, str]:
        """Return the folder of train, of val, or of both."""
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for entry in list_folder(self.root):
            match = _PART.fullmatch(entry.name)
            if match and is_folder(entry) and _has_images(self.root / entry.name):
                found[match[2]][match[1]] = entry.name
        years = sorted(found)
        if self.year is not None and self.year not in found:
            raise DataError(f"data.name: no images in train{self.year} or val{self.year} of {str(self.root)!r}")
        if self.year is None and len(years) > 1:
            raise DataError(
                f"data.root: {str(self.root)!r} holds several years, which share images; "
                f"choose one with data.name: {', '.join(year or repr(year) for year in years)}"
            )
        return found[years[0] if self.year is None else self.year] if years else {}

    def _read(self, folder: str, keys: Sequence[str], categories: dict[str, int]) -> Mapping[str, str]:
        """Return the main category by file name; add the file's categories to `categories`, each with its first id."""
        path = self.root / ANNOTATIONS / f"instances_{folder}.json"
        if not path.is_file():
            return {}
        stat = path.stat()
        instances = _read_instances(path, stat.st_size, stat.st_mtime_ns)
        names = {key.removeprefix(f"{folder}/") for key in keys}
        if instances.file_names and names.isdisjoint(instances.file_names):
            raise DataError(
                f"data.root: {path.name} describes none of the images in {folder}; check which folder it belongs to"
            )
        known = {number: name for name, number in categories.items()}
        for number, name in instances.categories.items():
            # The id of another category with a name of its own: renamed or new, which nothing here can decide.
            if name not in categories and known.get(number, name) != name:
                raise DataError(
                    f"data.root: {path.name} calls category {number} {name!r}, another file {known[number]!r}; use the "
                    "annotations of one release"
                )
        for number, name in sorted(instances.categories.items()):
            categories.setdefault(name, number)
        return {file: instances.categories[number] for file, number in instances.main_category.items()}


def _has_images(folder: Path) -> bool:
    return any(entry.name.lower().endswith(SUFFIXES) and not is_folder(entry) for entry in list_folder(folder))


class _Instances(NamedTuple):
    categories: Mapping[int, str]
    file_names: frozenset[str]
    main_category: Mapping[str, int]
    """By file name; images without an annotation are left out."""


# A plan, an encode and a training run read the same file of half a gigabyte: once per process is enough.
@lru_cache(maxsize=4)
def _read_instances(path: Path, size: int, mtime: int) -> _Instances:
    try:
        with path.open(encoding="utf-8") as file:
            return _main_categories(json.load(file, object_hook=_without_outlines))
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        what = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise DataError(
            f"data.root: {ANNOTATIONS}/{path.name} is not a readable COCO instances file ({what}); download it again, "
            "or move it away to encode without labels"
        ) from error


def _without_outlines(entry: dict[str, Any]) -> dict[str, Any]:
    """Drop the outlines, nine tenths of the file, while it is parsed."""
    entry.pop("segmentation", None)
    return entry


def _main_categories(content: Any) -> _Instances:
    categories = {int(entry["id"]): str(entry["name"]) for entry in content["categories"]}
    # Two ids of one name are one category.
    first = {name: number for number, name in sorted(categories.items(), reverse=True)}
    file_names = {entry["id"]: str(entry["file_name"]) for entry in content["images"]}
    areas: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for annotation in content["annotations"]:
        # Reduced files often keep the annotations of images that they dropped.
        name, category = file_names.get(annotation["image_id"]), int(annotation["category_id"])
        if category not in categories:
            raise ValueError(f"annotation {annotation.get('id')} has the unknown category {category}")
        if name is not None:
            areas[name][first[categories[category]]] += _area(annotation)
    main = {name: min(areas[name], key=lambda category: (-areas[name][category], category)) for name in areas}
    return _Instances(categories, frozenset(file_names.values()), main)


def _area(annotation: Mapping[str, Any]) -> float:
    """Return the area in square pixels: that of the outline if it is given, else that of the box."""
    area = annotation["area"] if "area" in annotation else annotation["bbox"][2] * annotation["bbox"][3]
    if not isinstance(area, int | float) or not math.isfinite(area) or area < 0:
        raise ValueError(f"annotation {annotation.get('id')} has the area {area!r}")
    return float(area)

"""Image data sets of the `datasets` library, by their name on the Hugging Face hub or in a local directory."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.encoding.sources.base import (
    NO_FILE,
    ImageItem,
    basic_identity,
    content_digest,
    digest,
    file_stats,
    probes,
)
from tokconv.encoding.sources.files import file_size, open_image
from tokconv.encoding.sources.splits import choose_splits, split_notes
from tokconv.encoding.towers.hub import HUB_TIMEOUT
from tokconv.errors import DataError, first_line, import_extra, suggest
from tokconv.system.files import local_path

ROWS = 1000
"""Read at a time."""
SAVED_FILES = ("dataset_dict.json", "state.json")
"""Files by which a directory written by `save_to_disk` is recognised."""


class HuggingFaceSource:
    """An image data set of the `datasets` library, which memory-maps it; code inside a data set is never run.

    A training split and a held-out one declare the split (`tokconv.encoding.sources.splits` has their names); others
    are left out. One of them alone, or a single split of another name, declares none. A label that is missing or below
    0 means that the image has no label. The classes of two splits are matched by name; a class of the held-out split
    alone comes after those of the train split.

    Args:
        root: a name on the hub, a directory written by `save_to_disk`, or one that `load_dataset` understands (image
            folders with or without metadata, parquet, arrow, webdataset). Only a name needs the network.
        config_name: the data set's configuration, if it has several.
        image_column: None takes the only column of images; a named one may also hold encoded bytes or file paths.
        label_column: None takes the only column of class labels, if any; a named one may also hold integers or texts.

    Raises:
        MissingExtraError: `datasets` is not installed.
        DataError: the data set is neither a directory nor reachable, is unreadable, or lacks the columns.
    """

    name = "huggingface"

    def __init__(
        self,
        root: str,
        *,
        config_name: str | None = None,
        image_column: str | None = None,
        label_column: str | None = None,
    ) -> None:
        datasets: Any = import_extra("datasets", "datasets")
        parts, self.notes = _choose(_load(datasets, root, config_name), root)
        features = next(iter(parts.values()))[1].features
        image = _find_column(features, datasets.Image, image_column, "image", root)
        if image is None:
            raise DataError(
                f"data.root: {root!r} has no column of images ({', '.join(features)}); name one in data.image_column"
            )
        label = _find_column(features, datasets.ClassLabel, label_column, "label", root)
        with _explained(root):
            # As bytes or a path: `open_image` turns images upright and scales 16 bits, the library does not.
            encoded = [
                part.with_format(None).select_columns([image]).cast_column(image, datasets.Image(decode=False))
                for _, part in parts.values()
            ]
            self._images = datasets.concatenate_datasets(encoded)
        self._column = image
        self.class_names, labels = _read_labels([part for _, part in parts.values()], label)
        splits = [(name, split, row) for name, (split, part) in parts.items() for row in range(len(part))]
        self.items = tuple(
            ImageItem(f"{name}/{row:08d}", number, split)
            for (name, split, row), number in zip(splits, labels, strict=True)
        )

    def load(self, index: int) -> Image.Image:
        content = self._content(index)
        if content is None:
            raise ValueError("no image in this row")
        return open_image(BytesIO(content) if isinstance(content, bytes) else content)

    def identity(self) -> dict[str, Any]:
        # Without the library's fingerprint, which changes if a directory is moved.
        return basic_identity(self)

    def stats(self, indices: Sequence[int]) -> Tensor:
        # The images inside the data set share its files: one of them that changed makes all suspicious.
        inside = file_stats([str(file["filename"]) for file in self._images.cache_files])
        whole = torch.stack([inside[:, 0].sum(), inside[:, 1].max()]) if len(inside) else torch.tensor(NO_FILE)
        paths = self._paths()
        found = file_stats([paths.get(index) for index in indices])
        found[[index not in paths for index in indices]] = whole
        return found

    def content(self, index: int) -> bytes:
        return content_digest(self._content(index) or b"")

    def probed_identity(self) -> dict[str, Any]:
        contents = digest(_summary(self._content(index)) for index in probes(range(len(self.items))))
        return {**basic_identity(self), "contents": contents}

    def _paths(self) -> dict[int, str]:
        """Return the file of every image that is one of its own, by index; images inside the data set are not read."""
        found: dict[int, str] = {}
        for start in range(0, len(self._images), ROWS):
            cells = self._images.with_format("arrow")[start : start + ROWS].column(self._column)
            inside = [valid for part in cells.chunks for valid in part.field("bytes").is_valid().to_pylist()]
            paths = [path for part in cells.chunks for path in part.field("path").to_pylist()]
            for row, (path, is_inside) in enumerate(zip(paths, inside, strict=True), start=start):
                if path and not is_inside:
                    found[row] = path
        return found

    def _content(self, index: int) -> bytes | Path | None:
        """Return an encoded image, or the path of its file."""
        cell = self._images[index][self._column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        return Path(cell["path"]) if cell.get("path") else None


def _summary(content: bytes | Path | None) -> str | int:
    if isinstance(content, bytes):
        return hashlib.sha256(content).hexdigest()
    return -1 if content is None else file_size(content)


def _load(datasets: Any, root: str, config_name: str | None) -> Mapping[str, Any]:
    """Load the data set of each split, by the split's name."""
    folder = local_path(root)
    if folder.is_dir():
        saved = any((folder / name).is_file() for name in SAVED_FILES)
        if saved and config_name is not None:
            raise DataError(f"data.name: {root!r} was written by save_to_disk, which keeps one configuration; omit it")
        with _explained(root):
            path = str(folder.resolve())  # a bare name could also mean a file format
            loaded = datasets.load_from_disk(path) if saved else datasets.load_dataset(path, name=config_name)
    # A hub name is NAME or OWNER/NAME; anything else can only be meant as a path, so the hub is not asked.
    elif root.startswith(("/", ".", "~")) or "\\" in root or root.count("/") > 1:
        raise DataError(f"data.root: there is no directory {root!r}; check the path")
    else:
        loaded = _load_from_hub(datasets, root, config_name)
    if isinstance(loaded, datasets.Dataset):
        return {str(loaded.split or "all"): loaded}
    return dict(loaded)


def _load_from_hub(datasets: Any, name: str, config_name: str | None) -> Any:
    from huggingface_hub import HfApi
    from huggingface_hub.utils import httpx  # type: ignore[attr-defined]  # httpx or httpx2, whichever the hub uses

    try:
        # `load_dataset` retries a dead network for a long time; this request fails within its timeout.
        revision = HfApi().dataset_info(name, timeout=HUB_TIMEOUT).sha
    except (httpx.HTTPError, OSError, ValueError) as error:
        try:
            with _offline(datasets):
                return datasets.load_dataset(name, name=config_name)
        except (datasets.exceptions.DatasetsError, OSError, ValueError):
            raise DataError(
                f"data.root: {name!r} is neither a directory nor reachable on the Hugging Face hub nor cached "
                f"({type(error).__name__}); check the name and the network, or give the directory of a downloaded copy"
            ) from error
    with _explained(name):
        return datasets.load_dataset(name, name=config_name, revision=revision)


@contextlib.contextmanager
def _offline(datasets: Any) -> Iterator[None]:
    """Use the cache alone; the library has no argument for that."""
    before = datasets.config.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE = before


@contextlib.contextmanager
def _explained(root: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # datasets, pyarrow, fsspec and the hub raise many kinds
        raise DataError(f"data.root: cannot read {root!r} as an image data set ({first_line(error)})") from error


def _choose(parts: Mapping[str, Any], root: str) -> tuple[dict[str, tuple[str | None, Any]], tuple[str, ...]]:
    """Return the splits to use, split name -> (train, val or None, data set), and notes about them."""
    parts = {name: part for name, part in parts.items() if len(part)}
    if not parts:
        raise DataError(f"data.root: no images in {root!r}")
    splits = choose_splits(parts)
    if splits is None and len(parts) > 1:
        raise DataError(
            f"data.root: {root!r} has the splits {', '.join(parts)}; name one of them train, and the held-out one "
            "validation or test"
        )
    if splits is None:
        return {name: (None, part) for name, part in parts.items()}, ()
    sides = {splits.train: "train", splits.held_out: "val"}
    declared = None not in sides
    chosen = {name: (side if declared else None, parts[name]) for name, side in sides.items() if name is not None}
    return chosen, split_notes(splits, "images")


def _find_column(features: Mapping[str, Any], kind: type, wanted: str | None, what: str, root: str) -> str | None:
    """Return the wanted column, else the only column of this kind, else None."""
    if wanted is not None:
        if wanted not in features:
            raise DataError(f"data.{what}_column: {root!r} has no column {wanted!r}; {suggest(wanted, features)}")
        return wanted
    found = [name for name, feature in features.items() if isinstance(feature, kind)]
    if len(found) > 1:
        raise DataError(f"data.{what}_column: {root!r} has several ({', '.join(found)}); name one")
    return found[0] if found else None


def _read_labels(parts: Sequence[Any], column: str | None) -> tuple[tuple[str, ...], list[int | None]]:
    """Return the class names, and the class of every row. Each split may number its classes in its own way.

    Raises DataError if the classes of two splits cannot be matched by name.
    """
    if column is None:
        return (), [None] * sum(len(part) for part in parts)
    cells = [_class_names(part, column) for part in parts]
    kinds = {type(name) for part in cells for name in part if name is not None} | {
        str for part in parts if _declared(part, column)
    }
    if len(kinds) > 1:
        raise DataError(
            f"data.label_column: {column!r} holds class names in one split and integers in another, which cannot be "
            "matched; give every split the same class labels"
        )
    found = [name for part in cells for name in part]
    declared = dict.fromkeys(name for part in parts for name in _declared(part, column))
    others = {name for name in found if name is not None} - declared.keys()
    numbers = {name: number for number, name in enumerate([*declared, *sorted(others)])}
    labels = [None if name is None else numbers[name] for name in found]
    named = any(label is not None for label in labels)
    return tuple(map(str, numbers)) if named else (), labels


def _declared(part: Any, column: str) -> Sequence[str]:
    """Return the names that a column of class labels declares."""
    names = getattr(part.features.get(column), "names", None) or ()
    if len(set(names)) < len(names):
        raise DataError(f"data.label_column: {column!r} has two classes of one name; give each its own")
    return tuple(names)


def _class_names(part: Any, column: str) -> Sequence[str | int | None]:
    """Return the class of every row of a split: its name, an integer if it has no name, None without a label."""
    if column not in part.features:
        return [None] * len(part)
    values = part.select_columns([column]).with_format("arrow")[:].column(0).to_pylist()
    if not all(value is None or isinstance(value, int | str) for value in values):
        raise DataError(f"data.label_column: {column!r} holds neither class labels, integers nor texts")
    values = [None if isinstance(value, int) and value < 0 else value for value in values]
    if not (names := _declared(part, column)):
        return values
    beyond = next((value for value in values if isinstance(value, int) and value >= len(names)), None)
    if beyond is not None:
        raise DataError(f"data.label_column: {column!r} has the label {beyond}, and names only {len(names)} classes")
    return [names[value] if isinstance(value, int) else value for value in values]

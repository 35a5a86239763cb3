"""Ready-made tokens in .npy and .safetensors files, instead of images and a tower.

Shapes: n images per file, N = G * G tokens, or one more with the class token first, C channels.

A file holds one image [N, C] or many [n, N, C]. Folders and files with the names of splits declare the split, as those
of images do. Only a safetensors file can hold labels: a tensor `labels` [n] of whole numbers next to `tokens`. They
number the entries of `class_names` in the file's metadata, a JSON list; without it, a number means the same class in
every file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.base import ImageItem, basic_identity, content_digest, digest, file_stats, probes
from tokconv.encoding.sources.layout import Part, arrange, find_files
from tokconv.encoding.sources.walk import count_suffixes
from tokconv.encoding.towers.families import SHORT_NAMES
from tokconv.errors import DataError
from tokconv.system.files import local_path

SUFFIXES = (".npy", ".safetensors")
TOKENS, LABELS, CLASS_NAMES = "tokens", "labels", "class_names"
GIVEN = "given tokens"
"""Stands in place of the revision in the identity of an encoder."""
PROBE_VALUES = 256
MAX_LABEL = 2**20


@dataclass(frozen=True)
class FeatureSpec:
    """The encoder of ready-made tokens, as far as they and the config describe it; the counterpart of `EncoderSpec`."""

    name: str
    layer: int
    """`model.clip.layer` as given, possibly counted from the end: the encoder's number of layers is unknown."""
    token_grid: int
    dim: int

    @property
    def slug(self) -> str:
        """The last part of the name, suitable for a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.rstrip("/").split("/")[-1].lower()).strip("-.")

    def identity(self) -> dict[str, Any]:
        """Return JSON that identifies the encoder by what the config says about it."""
        return {"name": self.name, "revision": GIVEN, **asdict(self)}


@dataclass(frozen=True)
class _File:
    path: Path
    key: str
    """Path relative to the root."""
    tensor: str
    """Its name in a safetensors file."""
    rows: int | None
    """n; None for a single image [N, C]."""
    num_tokens: int
    dim: int
    labels: tuple[int, ...]
    split: str | None
    class_names: tuple[str, ...] = ()
    """What the labels number; empty if the file does not say."""


class FeatureSource:
    """Tokens in files, read row by row: memory holds one image, whatever the size of a file. Can be pickled.

    Args:
        root: a file, or a folder of them at any depth.

    Raises:
        DataError: there are no files, or one has another shape or dtype, is pickled, or does not match the others; or
            files of a held-out split cannot be told from those to train on.

    Example:
        >>> FeatureSource("features.npy").load(0).shape      # doctest: +SKIP
        torch.Size([576, 1024])
    """

    name = "features"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = local_path(root)
        # The key of the root itself, where it is a file, is the file's name.
        above = self.root.parent if self.root.is_file() else self.root
        self.notes, parts = self._parts()
        files = [
            _describe(above / key, key, part.split)
            for part in parts
            for key in sorted(part.files, key=lambda key: key.split("/"))
        ]
        for file in files:
            _check_alike(file, files[0])
        self.dim, self.token_grid = files[0].dim, _grid(files[0].num_tokens)
        self.class_names, labels = _match_classes(files)
        self._places = [(file, row) for file in files for row in range(file.rows or 1)]
        self.items = tuple(
            ImageItem(
                file.key if file.rows is None else f"{file.key}/{row:06d}",
                labels[file.key][row] if file.labels else None,
                file.split,
            )
            for file, row in self._places
        )

    def load(self, index: int) -> Tensor:
        """Return the patch tokens [N, C] of one image, float32.

        Raises:
            ValueError: a value is not finite.
            DataError: the file is gone or damaged.
        """
        file, row = self._places[index]
        tokens = _read(file, row).float()[-(self.token_grid**2) :]
        if not torch.isfinite(tokens).all():
            raise ValueError("not every value is finite")
        return tokens

    def spec(self, clip: ClipConfig) -> FeatureSpec:
        """Return what the config says about the encoder, with the sizes of the tokens."""
        return FeatureSpec(SHORT_NAMES.get(clip.model_name, clip.model_name), clip.layer, self.token_grid, self.dim)

    def identity(self) -> dict[str, Any]:
        return basic_identity(self)

    def stats(self, indices: Sequence[int]) -> Tensor:
        return file_stats([str(self._places[index][0].path) for index in indices])

    def content(self, index: int) -> bytes:
        return content_digest(_read(*self._places[index]).float().contiguous().numpy().tobytes())

    def probed_identity(self) -> dict[str, Any]:
        values = (_read(file, row).flatten()[:PROBE_VALUES].tolist() for file, row in probes(self._places))
        return {**basic_identity(self), "values": digest(values)}

    def _parts(self) -> tuple[tuple[str, ...], tuple[Part, ...]]:
        """Return notes about what is not read, and the files by split."""
        if not self.root.exists():
            raise DataError(f"data.root: there is no {str(self.root)!r}; give a file of tokens or a folder of them")
        needed = f"it needs files ending in {' or '.join(SUFFIXES)}, of shape [images, tokens, channels]"
        if self.root.is_file():
            if not self.root.name.lower().endswith(SUFFIXES):
                raise DataError(f"data.root: no tokens in {str(self.root)!r}; {needed}")
            return (), (Part("", None, (self.root.name,)),)
        tree = find_files(self.root, SUFFIXES)
        if not tree.files:
            found = f"; there are only {count_suffixes(tree.ignored)}" if tree.ignored else ""
            raise DataError(f"data.root: no tokens in {str(self.root)!r}; {needed}{found}")
        layout = arrange(self.root, tree, "tokens", files_are_splits=True)
        return layout.notes, layout.parts


def _describe(path: Path, key: str, split: str | None) -> _File:
    """Describe a file from its header. Raises DataError if it does not hold tokens."""
    name = ""
    labels: Tensor | None = None
    class_names: tuple[str, ...] = ()
    try:
        if path.suffix.lower() == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, floats = array.shape, array.dtype.kind == "f"
        else:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name != LABELS]  # noqa: SIM118 (not a mapping)
                name = TOKENS if TOKENS in names or len(names) != 1 else names[0]
                part = file.get_slice(name)
                shape, floats = tuple(part.get_shape()), part.get_dtype() in ("F16", "BF16", "F32", "F64")
                if LABELS in file.keys():  # noqa: SIM118
                    labels = file.get_tensor(LABELS)
                    class_names = _read_class_names(file.metadata() or {})
    except Exception as error:  # for damaged files, numpy raises several kinds and safetensors a bare Exception
        raise DataError(f"data.root: {path} cannot be read ({error}); write it again") from error
    if len(shape) not in (2, 3) or 0 in shape or not floats or not _grid(shape[-2]):
        raise DataError(
            f"data.root: {path} has shape {list(shape)}{'' if floats else ', and no floating point dtype'}; it must be "
            "[images, tokens, channels] or [tokens, channels] with a square grid of tokens, as 576, or 577 if the "
            "class token comes first"
        )
    rows = shape[0] if len(shape) == 3 else None
    numbers = () if labels is None else _labels(path, labels, shape)
    if class_names and max(numbers, default=-1) >= len(class_names):
        raise DataError(f"data.root: {path} has the label {max(numbers)}, and names only {len(class_names)} classes")
    return _File(path, key, name, rows, shape[-2], shape[-1], numbers, split, class_names)


def _labels(path: Path, labels: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    if labels.is_floating_point() or labels.shape != shape[:1] or len(shape) != 3 or labels.min() < 0:
        raise DataError(f"data.root: the labels in {path} must be whole numbers from 0, one per image")
    if labels.max() > MAX_LABEL:
        raise DataError(f"data.root: {path} has the label {labels.max()}; labels must be at most {MAX_LABEL}")
    return tuple(labels.tolist())


def _read_class_names(metadata: Mapping[str, str]) -> tuple[str, ...]:
    """Return the names in the metadata of a safetensors file. Raises ValueError for another value."""
    names = json.loads(metadata.get(CLASS_NAMES, "[]"))
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise ValueError(f"{CLASS_NAMES} in its metadata must be a JSON list of distinct names")
    return tuple(map(str, names))


def _match_classes(files: Sequence[_File]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
    """Return the class names of all files, and each file's labels in them: matched by name where files name them."""
    named = {bool(file.class_names): file for file in files if file.labels}
    if len(named) > 1:
        raise DataError(
            f"data.root: {named[True].path} names its classes, {named[False].path} does not, so their labels cannot be "
            f"matched; write {CLASS_NAMES} into the metadata of all files or of none"
        )
    if True not in named:
        highest = max((max(file.labels, default=-1) for file in files), default=-1)
        return tuple(map(str, range(highest + 1))), {file.key: file.labels for file in files}
    names = tuple(dict.fromkeys(name for file in files for name in file.class_names))
    numbers = {name: number for number, name in enumerate(names)}
    return names, {file.key: tuple(numbers[file.class_names[label]] for label in file.labels) for file in files}


def _check_alike(file: _File, first: _File) -> None:
    if (file.num_tokens, file.dim) != (first.num_tokens, first.dim):
        raise DataError(
            f"data.root: {file.path} has {file.num_tokens} tokens of {file.dim} channels, {first.path} has "
            f"{first.num_tokens} of {first.dim}; all tokens of a store must come from one encoder"
        )
    if bool(file.labels) != bool(first.labels):
        raise DataError(f"data.root: only one of {file.path} and {first.path} has labels; label all files or none")


def _grid(num_tokens: int) -> int:
    """Return the side length of the grid, with or without a class token; 0 if it is not square."""
    return next((isqrt(n) for n in (num_tokens, num_tokens - 1) if n > 0 and isqrt(n) ** 2 == n), 0)


def _read(file: _File, row: int) -> Tensor:
    """Return one image [N, C] in the dtype of the file."""
    try:
        if file.path.suffix.lower() == ".npy":
            array = np.load(file.path, mmap_mode="r", allow_pickle=False)
            return torch.from_numpy(np.array(array if file.rows is None else array[row], dtype=np.float32))
        with safe_open(file.path, framework="pt") as opened:
            part = opened.get_slice(file.tensor)
            tensor: Tensor = part[:] if file.rows is None else part[row]
            return tensor
    except Exception as error:  # as in _describe
        raise DataError(f"data.root: {file.path} cannot be read any more ({error})") from error

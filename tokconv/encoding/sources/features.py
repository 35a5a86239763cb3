"""Tokens that somebody has encoded already: .npy and .safetensors files, instead of images and a tower.

Shapes: n images of a file, N = G * G tokens, or one more with the class token first, C channels.

A file is one image [N, C] or many [n, N, C]. Folders `train` and `val` alone declare the split. Labels can come from a
safetensors file only, as a tensor `labels` [n] of whole numbers beside `tokens`.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.base import SPLITS, ImageItem, basic_identity, digest, probes
from tokconv.encoding.towers.families import SHORT_NAMES
from tokconv.errors import DataError

SUFFIXES = (".npy", ".safetensors")
TOKENS, LABELS = "tokens", "labels"
GIVEN = "given tokens"
"""Where the identity of another encoder has its revision."""
PROBE_VALUES = 256
MAX_LABEL = 2**20


@dataclass(frozen=True)
class FeatureSpec:
    """The encoder of given tokens, as far as they and the config tell; the counterpart of `EncoderSpec`."""

    name: str
    layer: int
    """As `model.clip.layer`, negative ones counted from the end: how many layers the encoder has is not known."""
    token_grid: int
    dim: int

    @property
    def slug(self) -> str:
        """The last part of the name, fit for a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", self.name.rstrip("/").split("/")[-1].lower()).strip("-.")

    def identity(self) -> dict[str, Any]:
        """JSON; names the encoder by what the config says of it."""
        return {
            "name": self.name,
            "revision": GIVEN,
            "layer": self.layer,
            "token_grid": self.token_grid,
            "dim": self.dim,
        }


@dataclass(frozen=True)
class _File:
    path: Path
    key: str
    """Path relative to the root."""
    tensor: str
    """Its name in a safetensors file."""
    rows: int | None
    """n; None for one image [N, C]."""
    num_tokens: int
    dim: int
    labels: tuple[int, ...]

    @property
    def folder(self) -> str:
        """The first-level folder that the file is in, "" for none."""
        return self.key.rpartition("/")[0].split("/")[0]


class FeatureSource:
    """Tokens in files, read row by row: memory holds one image, whatever the size of a file. It can be pickled.

    Args:
        root: a file, or a folder of them at any depth.

    Raises:
        DataError: nothing there, another shape or dtype, a pickled array, or files that do not belong together.

    Example:
        >>> FeatureSource("features.npy").load(0).shape      # doctest: +SKIP
        torch.Size([576, 1024])
    """

    name = "features"

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser()
        files = [_describe(path, self._key(path)) for path in self._paths()]
        for file in files:
            _check_alike(file, files[0])
        self.dim, self.token_grid = files[0].dim, _grid(files[0].num_tokens)
        highest = max((max(file.labels, default=-1) for file in files), default=-1)
        self.class_names = tuple(map(str, range(highest + 1)))
        declared = {file.folder for file in files} == set(SPLITS)
        self._places = [(file, row) for file in files for row in range(file.rows or 1)]
        self.items = tuple(
            ImageItem(
                file.key if file.rows is None else f"{file.key}/{row:06d}",
                file.labels[row] if file.labels else None,
                file.folder if declared else None,
            )
            for file, row in self._places
        )

    def load(self, index: int) -> Tensor:
        """The patch tokens [N, C] of one image, float32.

        Raises:
            ValueError: one of them is not finite.
            DataError: the file is gone or damaged.
        """
        file, row = self._places[index]
        tokens = _read(file, row).float()[-(self.token_grid**2) :]
        if not torch.isfinite(tokens).all():
            raise ValueError("not every value is finite")
        return tokens

    def spec(self, clip: ClipConfig) -> FeatureSpec:
        """What the config says of the encoder, with what the files have."""
        return FeatureSpec(SHORT_NAMES.get(clip.model_name, clip.model_name), clip.layer, self.token_grid, self.dim)

    def identity(self) -> dict[str, Any]:
        # The first values of some images tell files apart whose names and shapes are equal.
        values = (_read(file, row).flatten()[:PROBE_VALUES].tolist() for file, row in probes(self._places))
        return {**basic_identity(self), "values": digest(values)}

    def _paths(self) -> list[Path]:
        if not self.root.exists():
            raise DataError(f"data.root: there is no {str(self.root)!r}; give a file of tokens or a folder of them")
        below = [self.root] if self.root.is_file() else sorted(self.root.rglob("*"))
        paths = [path for path in below if path.suffix in SUFFIXES and path.is_file()]
        if not paths:
            raise DataError(
                f"data.root: no tokens in {str(self.root)!r}; it needs files ending in {' or '.join(SUFFIXES)}, of "
                "shape [images, tokens, channels]"
            )
        return paths

    def _key(self, path: Path) -> str:
        return path.name if path == self.root else path.relative_to(self.root).as_posix()


def _describe(path: Path, key: str) -> _File:
    """A file from its header. Raises DataError for one that does not hold tokens."""
    name = ""
    labels: tuple[int, ...] = ()
    try:
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            shape, floats = array.shape, array.dtype.kind == "f"
        else:
            with safe_open(path, framework="pt") as file:
                names = [name for name in file.keys() if name != LABELS]  # noqa: SIM118 (not a mapping)
                name = TOKENS if TOKENS in names or len(names) != 1 else names[0]
                part = file.get_slice(name)
                shape, floats = tuple(part.get_shape()), part.get_dtype() in ("F16", "BF16", "F32", "F64")
                if LABELS in file.keys():  # noqa: SIM118
                    labels = _labels(path, file.get_tensor(LABELS), shape)
    except DataError:
        raise
    except Exception as error:  # numpy raises several kinds for a damaged file, safetensors a bare Exception
        raise DataError(f"data.root: {path} cannot be read ({error}); write it again") from error
    if len(shape) not in (2, 3) or 0 in shape or not floats or not _grid(shape[-2]):
        raise DataError(
            f"data.root: {path} has shape {list(shape)}{'' if floats else ', and no floating point dtype'}; it must be "
            "[images, tokens, channels] or [tokens, channels], the tokens a square grid, as 576, or 577 with the class "
            "token first"
        )
    rows = shape[0] if len(shape) == 3 else None
    return _File(path, key, name, rows, shape[-2], shape[-1], labels)


def _labels(path: Path, labels: Tensor, shape: tuple[int, ...]) -> tuple[int, ...]:
    if labels.is_floating_point() or labels.shape != shape[:1] or len(shape) != 3 or labels.min() < 0:
        raise DataError(f"data.root: labels of {path} must be whole numbers from 0, one an image")
    if labels.max() > MAX_LABEL:
        raise DataError(f"data.root: {path} has the label {labels.max()}; at most {MAX_LABEL} is possible")
    return tuple(labels.tolist())


def _check_alike(file: _File, first: _File) -> None:
    if (file.num_tokens, file.dim) != (first.num_tokens, first.dim):
        raise DataError(
            f"data.root: {file.path} has {file.num_tokens} tokens of {file.dim} channels, {first.path} has "
            f"{first.num_tokens} of {first.dim}; the tokens of a store are of one encoder"
        )
    if bool(file.labels) != bool(first.labels):
        raise DataError(f"data.root: only one of {file.path} and {first.path} has labels; give all of them or none")


def _grid(num_tokens: int) -> int:
    """Side length of the grid, with or without a class token; 0 when it is no square."""
    return next((isqrt(n) for n in (num_tokens, num_tokens - 1) if n > 0 and isqrt(n) ** 2 == n), 0)


def _read(file: _File, row: int) -> Tensor:
    """One image [N, C] in the dtype of the file."""
    try:
        if file.path.suffix == ".npy":
            array = np.load(file.path, mmap_mode="r", allow_pickle=False)
            return torch.from_numpy(np.array(array if file.rows is None else array[row], dtype=np.float32))
        with safe_open(file.path, framework="pt") as opened:
            part = opened.get_slice(file.tensor)
            tensor: Tensor = part[:] if file.rows is None else part[row]
            return tensor
    except Exception as error:  # as in _describe
        raise DataError(f"data.root: {file.path} cannot be read any more ({error})") from error

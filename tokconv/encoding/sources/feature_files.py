"""Files of ready-made tokens: what one holds, read row by row, so that memory holds one image, whatever their size.

Shapes: n images per file, [n, N, C] or a single one [N, C]; N = E + G * G, E tokens that are no patches first.

.npy          the array
.safetensors  a single tensor, or `tokens` and `labels` [n]; the metadata may hold `class_names`, a JSON list
.pt           the tensor, or a dictionary with `tokens`, `labels` [n], `class_names`; read with `weights_only`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from tokconv.errors import DataError, first_line

SUFFIXES = (".npy", ".safetensors", ".pt")
TOKENS, LABELS, CLASS_NAMES = "tokens", "labels", "class_names"
MAX_LABEL = 2**20
EXTRA_TOKENS = {0: "", 1: "the class token", 5: "the class token and 4 register tokens"}
"""The numbers of tokens before the patches that are recognised, and what they are."""
FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


@dataclass(frozen=True)
class Asked:
    """What the user said about files of tokens, and by which names, for messages."""

    extra_tokens: int | None = None
    """E; None recognises those in `EXTRA_TOKENS`."""
    root_key: str = "data.root"
    extra_key: str = "data.extra_tokens"


@dataclass(frozen=True)
class TokenFile:
    """The description of a file, and how to read one image of it. Can be pickled."""

    path: Path
    key: str
    """Path relative to the root."""
    tensor: str
    """Its name in a file that has names."""
    rows: int | None
    """n; None for a single image [N, C]."""
    num_tokens: int
    extra_tokens: int
    dim: int
    labels: tuple[int, ...]
    split: str | None
    class_names: tuple[str, ...] = ()
    """What the labels number; empty if the file does not say."""

    @property
    def grid(self) -> int:
        return isqrt(self.num_tokens - self.extra_tokens)

    def read(self, row: int) -> Tensor:
        """Return all tokens [N, C] of one image in the dtype of the file, of an array in float32.

        Raises:
            DataError: the file is gone or damaged.
        """
        try:
            if self.path.suffix.lower() == ".npy":
                array = np.load(self.path, mmap_mode="r", allow_pickle=False)
                return torch.from_numpy(np.array(array if self.rows is None else array[row], dtype=np.float32))
            if self.path.suffix.lower() == ".pt":
                whole = _torch_content(self.path)[self.tensor]
                return (whole if self.rows is None else whole[row]).detach().clone()
            with safe_open(self.path, framework="pt") as opened:
                part = opened.get_slice(self.tensor)
                tensor: Tensor = part[:] if self.rows is None else part[row]
                return tensor
        except Exception as error:  # as in describe_file
            raise DataError(f"{self.path} cannot be read any more ({first_line(error)})") from error


def describe_file(path: Path, key: str, split: str | None, asked: Asked) -> TokenFile:
    """Describe a file from its header. Raises DataError if it does not hold tokens."""
    try:
        name, shape, floats, labels, class_names = _header(path)
    except Exception as error:  # for damaged files, the libraries raise several kinds and safetensors a bare Exception
        how = "save the tensor alone, with torch.save" if path.suffix.lower() == ".pt" else "write it again"
        raise DataError(f"{asked.root_key}: {path} cannot be read ({first_line(error)}); {how}") from error
    found = f"{asked.root_key}: {path} has shape {list(shape)}"
    if len(shape) not in (2, 3) or 0 in shape or not floats:
        raise DataError(
            f"{found}{'' if floats else ', and no floating point dtype'}; it must be [images, tokens, channels] or "
            "[tokens, channels]"
        )
    extra = count_extra(shape[-2], asked.extra_tokens)
    if extra is None:
        raise DataError(f"{found}; {_no_square(shape[-2], asked)}")
    numbers = () if labels is None else _labels(path, labels, shape, asked)
    if class_names and max(numbers, default=-1) >= len(class_names):
        raise DataError(
            f"{asked.root_key}: {path} has the label {max(numbers)}, and names only {len(class_names)} classes"
        )
    rows = shape[0] if len(shape) == 3 else None
    return TokenFile(path, key, name, rows, shape[-2], extra, shape[-1], numbers, split, class_names)


def count_extra(num_tokens: int, asked: int | None) -> int | None:
    """Return how many of an image's tokens come before a square grid; None if there is no such grid."""
    return next((extra for extra in (EXTRA_TOKENS if asked is None else (asked,)) if _side(num_tokens - extra)), None)


def _side(num_tokens: int) -> int:
    return isqrt(num_tokens) if num_tokens > 0 and isqrt(num_tokens) ** 2 == num_tokens else 0


def _no_square(num_tokens: int, asked: Asked) -> str:
    if asked.extra_tokens is not None:
        left = num_tokens - asked.extra_tokens
        return (
            f"{num_tokens} tokens less {asked.extra_key}={asked.extra_tokens} are {left}, which make no square grid; "
            "compressors need the G x G tokens of square images"
        )
    return (
        f"{num_tokens} tokens make no square grid, nor do they without {EXTRA_TOKENS[1]} or without {EXTRA_TOKENS[5]}; "
        f"compressors need the G x G tokens of square images. If other tokens come before them, give their number with "
        f"{asked.extra_key}"
    )


def _header(path: Path) -> tuple[str, Sequence[int], bool, Tensor | None, tuple[str, ...]]:
    """Return name, shape and whether the tokens are of a float type; the labels, and what they number."""
    if path.suffix.lower() == ".npy":
        array = np.load(path, mmap_mode="r", allow_pickle=False)
        return "", array.shape, array.dtype.kind == "f", None, ()
    if path.suffix.lower() == ".pt":
        content = _torch_content(path)
        name = _only(list(content))
        tokens, labels = content[name], content.get(LABELS)
        if not isinstance(tokens, Tensor) or not isinstance(labels, Tensor | None):
            raise ValueError(f"{name or 'it'} or {LABELS} is no tensor")
        names = _check_names(content.get(CLASS_NAMES, []))
        return name, tokens.shape, tokens.dtype in FLOATS, labels, () if labels is None else names
    with safe_open(path, framework="pt") as file:
        name = _only(list(file.keys()))
        part = file.get_slice(name)
        floats = part.get_dtype() in ("F16", "BF16", "F32", "F64")
        if LABELS not in file.keys():  # noqa: SIM118 (not a mapping)
            return name, tuple(part.get_shape()), floats, None, ()
        names = _check_names(json.loads((file.metadata() or {}).get(CLASS_NAMES, "[]")))
        return name, tuple(part.get_shape()), floats, file.get_tensor(LABELS), names


def _torch_content(path: Path) -> Mapping[str, Any]:
    """Return what a .pt file holds, by name and mapped into memory; a tensor alone is called `tokens`."""
    content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    if isinstance(content, Tensor):
        return {TOKENS: content}
    if not isinstance(content, dict):
        raise ValueError(f"it holds a {type(content).__name__}")
    return content


def _only(names: Sequence[str]) -> str:
    names = [name for name in names if name not in (LABELS, CLASS_NAMES)]
    if TOKENS not in names and len(names) != 1:
        raise ValueError(f"it holds {', '.join(map(str, names)) or 'nothing'}; the tokens must be called {TOKENS}")
    return TOKENS if TOKENS in names else names[0]


def _labels(path: Path, labels: Tensor, shape: Sequence[int], asked: Asked) -> tuple[int, ...]:
    whole = not labels.is_floating_point() and not labels.is_complex()
    # torch compares narrow integers modulo their range, and unsigned wide ones not at all.
    labels = labels.long() if whole else labels
    if not whole or list(labels.shape) != [shape[0]] or len(shape) != 3 or labels.min() < 0:
        raise DataError(f"{asked.root_key}: the labels in {path} must be whole numbers from 0, one per image")
    if labels.max() > MAX_LABEL:
        raise DataError(f"{asked.root_key}: {path} has the label {labels.max()}; labels must be at most {MAX_LABEL}")
    return tuple(labels.tolist())


def _check_names(names: Any) -> tuple[str, ...]:
    if not isinstance(names, list) or len({str(name) for name in names}) < len(names):
        raise ValueError(f"{CLASS_NAMES} must be a list of distinct names")
    return tuple(map(str, names))

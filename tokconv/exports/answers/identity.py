"""Which model a directory holds, by samples of its files: what was computed with another one is not taken for its own.

Reading all weights takes long, and evenly spaced samples of a file would miss what a training changes: often the
projector alone, a hundredth of the weights. A training changes nearly all entries of a tensor, so a few blocks of each
tensor tell.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from tokconv.store.format import digest

BLOCKS, BLOCK_SIZE = 64, 64 * 1024
"""Of a file without named tensors; smaller files are read whole."""
TENSOR_BLOCKS, TENSOR_BLOCK_SIZE = 4, 4 * 1024
"""Of each tensor in a safetensors file."""


def identity_of(folder: Path) -> str:
    """Return a digest of the names, the sizes and samples of the content of a model's files."""
    files = sorted(path for path in folder.iterdir() if path.is_file())
    return digest([[path.name, path.stat().st_size, _sampled(path)] for path in files])


def _sampled(path: Path) -> str:
    found = hashlib.sha256()
    with path.open("rb") as file:
        for start, size in _blocks(file, path.stat().st_size):
            file.seek(start)
            found.update(file.read(size))
    return found.hexdigest()


def _blocks(file: BinaryIO, size: int) -> Iterator[tuple[int, int]]:
    """Yield the start and the size of each block that is read of a file."""
    yield from _spread(0, size, BLOCKS, BLOCK_SIZE)
    if not file.name.endswith(".safetensors"):
        return
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    try:
        header = json.loads(file.read(min(length, size)))
        spans = [tensor["data_offsets"] for name, tensor in header.items() if name != "__metadata__"]
    except (ValueError, TypeError, KeyError, AttributeError):
        return  # Loading the model says what is wrong with it.
    for start, end in spans:
        yield from _spread(8 + length + start, 8 + length + end, TENSOR_BLOCKS, TENSOR_BLOCK_SIZE)


def _spread(start: int, end: int, count: int, size: int) -> Iterator[tuple[int, int]]:
    """Yield blocks that are evenly spaced from start to end, all of it if that is no more than count blocks."""
    for at in range(start, end, max(size, -(-(end - start) // count))):
        yield at, min(size, end - at)

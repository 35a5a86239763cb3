"""Compressed tokens of images with different grids, in one safetensors file.

tokens    [T, C] float32: the tokens of all images, one image after another, T = sum of k * k
offsets   [B + 1] int64: the tokens of image i are rows offsets[i] to offsets[i + 1]
grids     [B] int64: k of each image; its tokens are a k x k grid, row by row
metadata  `tokconv_ragged`: format version; `images`: a JSON list of B names, in order
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokconv.errors import DataError
from tokconv.system.files import atomic_path

FORMAT = "1"
KEY = "tokconv_ragged"


@dataclass(frozen=True)
class RaggedTokens:
    """Tokens of B images: a sequence of views [k * k, C], one per image.

    Attributes:
        tokens, offsets, grids, images: as in the file.
    """

    tokens: Tensor
    offsets: Tensor
    grids: Tensor
    images: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.grids)

    def __getitem__(self, number: int) -> Tensor:
        if not -len(self) <= number < len(self):
            raise IndexError(f"image {number} of {len(self)}")
        number %= len(self)
        return self.tokens[int(self.offsets[number]) : int(self.offsets[number + 1])]

    def __iter__(self) -> Iterator[Tensor]:
        return (self[number] for number in range(len(self)))


def save_ragged(path: Path, tokens: Sequence[Tensor], images: Sequence[str]) -> Path:
    """Write the tokens [k * k, C] of each image atomically, and return the path.

    Raises:
        DataError: there are no images, the number of names differs, or an image's tokens form no square grid.
    """
    if not tokens or len(tokens) != len(images):
        raise DataError(f"{path}: got tokens of {len(tokens)} images and {len(images)} names; give one name per image")
    counts = torch.tensor([len(part) for part in tokens])
    offsets = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
    grids = counts.double().sqrt().round().long()
    whole = torch.cat([part.detach().cpu().float() for part in tokens])
    if reason := _wrong(whole, offsets, grids, len(images)):
        raise DataError(f"{path}: cannot be written ({reason})")
    metadata = {KEY: FORMAT, "images": json.dumps(list(images))}
    with atomic_path(Path(path)) as temporary:
        save_file({"tokens": whole, "offsets": offsets, "grids": grids}, temporary, metadata)
    return Path(path)


def load_ragged(path: str | Path) -> RaggedTokens:
    """Read what `tokconv compress --target-fvu` wrote: the tokens of B images, [k * k, C] each.

    Raises:
        DataError: the file is missing, damaged, or of another kind.

    Example:
        >>> ragged = tokconv.load_ragged("tokens.safetensors")     # doctest: +SKIP
        >>> for name, tokens in zip(ragged.images, ragged):        # doctest: +SKIP
        ...     print(name, tokens.shape)                          # doctest: +SKIP
        cat.jpg torch.Size([36, 64])
    """
    path = Path(path)
    if not path.is_file():
        raise DataError(f"{path}: no such file; tokconv compress --compressors --target-fvu writes one")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get(KEY) != FORMAT:
                raise DataError(f"{path}: holds no tokens of mixed grids; read it with safetensors.torch.load_file")
            tokens, offsets, grids = (file.get_tensor(name) for name in ("tokens", "offsets", "grids"))
        images = tuple(map(str, json.loads(metadata["images"])))
    except (SafetensorError, OSError, KeyError, TypeError, json.JSONDecodeError) as error:
        raise DataError(f"{path}: damaged ({type(error).__name__}); compress the images again") from error
    if reason := _wrong(tokens, offsets, grids, len(images)):
        raise DataError(f"{path}: damaged ({reason}); compress the images again")
    return RaggedTokens(tokens, offsets, grids, images)


def _wrong(tokens: Tensor, offsets: Tensor, grids: Tensor, images: int) -> str:
    """Return what does not fit together; "" if all does."""
    if tokens.ndim != 2 or offsets.ndim != 1 or grids.ndim != 1:
        return "a tensor has the wrong number of axes"
    if len(grids) != images or len(offsets) != images + 1:
        return "the numbers of images differ"
    expected = list(itertools.accumulate((int(k) ** 2 for k in grids), initial=0))
    if offsets.tolist() != expected or int(grids.min()) < 1:
        return "an image's tokens form no k x k grid"
    if len(tokens) != expected[-1]:
        return f"{len(tokens)} tokens where there should be {expected[-1]}"
    return ""

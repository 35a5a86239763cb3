"""What `tokconv compress` reads: images, which a tower encodes, or tokens that are there already.

Shapes: b images per batch, N = G * G tokens, C channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from tokconv.encoding.sources.feature_files import Asked
from tokconv.encoding.sources.features import FeatureSource
from tokconv.encoding.sources.files import SUFFIXES, open_image
from tokconv.encoding.sources.walk import count_suffixes, walk
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import DataError, first_line
from tokconv.system.terminal import progress_line

PICTURED_SIZE = (512, 512)


class Input(ABC):
    """Tokens in batches; those of the first images are kept for a picture.

    Args:
        names: of the images, in order.
        batch_size: images per batch.
        pictured: how many images the picture shows at most.
        device: of the tokens.

    Attributes:
        names: of the images that have been read.
        skipped: the names of images that cannot be read, each with the reason.
    """

    def __init__(self, names: Sequence[str], batch_size: int, pictured: int, device: torch.device) -> None:
        self._given, self.batch_size, self._pictured, self.device = list(names), batch_size, pictured, device
        self.names: list[str] = []
        self.skipped: list[tuple[str, str]] = []
        self.pictures: list[Image.Image] | None = None
        """The images of the picture, as far as they are read; None for tokens without images."""
        self._kept: list[Tensor] = []

    @property
    def num_pictured(self) -> int:
        """How many images the picture shows."""
        return min(self._pictured, len(self.names))

    @property
    def pictured_tokens(self) -> Tensor:
        """The tokens of the picture's images, [b, N, C] on the CPU."""
        return torch.cat(self._kept)[: self.num_pictured]

    def batches(self) -> Iterator[Tensor]:
        """Yield the tokens [b, N, C] of all images in order, on the device; one batch after the other is read.

        Raises:
            DataError: an image that was named cannot be read, or none can.
        """
        total = len(self._given)
        with progress_line("compressing") as line:
            for first in range(0, total, self.batch_size):
                numbers = range(first, min(first + self.batch_size, total))
                before = len(self.names)
                tokens = self._read(numbers)
                if before < self.num_pictured:
                    self._kept.append(tokens.cpu())
                if len(tokens):
                    yield tokens
                if total > self.batch_size:
                    line(numbers.stop, total, f"{len(self.skipped)} skipped" if self.skipped else "")
        if not self.names:
            name, reason = self.skipped[0]
            raise DataError(f"none of {total} images can be read (the first: {name}: {reason}); repair them")

    @abstractmethod
    def _read(self, numbers: range) -> Tensor:
        """Return the tokens of those of some images that can be read, and note their names and the others'."""


def image_files(paths: Sequence[Path]) -> list[Path]:
    """Return the image files among some paths, with those below a folder in its place, in the order of their names.

    Raises:
        DataError: a folder holds no images, or cannot be listed.
    """
    found: list[Path] = []
    for path in paths:
        if not path.is_dir():
            found.append(path)
            continue
        tree = walk(path, SUFFIXES)
        if not tree.files:
            held = count_suffixes(tree.ignored)
            raise DataError(f"{path}: holds no images{f', only {held}' if held else ''}; give a folder of images")
        found += [path / name for name in tree.files]
    return found


class ImageInput(Input):
    """Image files, which a tower encodes; those that cannot be read are skipped, except those that were named."""

    def __init__(
        self, images: Sequence[Path], named: Collection[Path], batch_size: int, pictured: int, tower: VisionTower
    ) -> None:
        super().__init__([str(path) for path in images], batch_size, pictured, tower.device)
        self._images, self._named, self._tower = images, named, tower
        self.pictures = []

    def _read(self, numbers: range) -> Tensor:
        assert self.pictures is not None
        pixels = []
        for path in (self._images[number] for number in numbers):
            try:
                image = open_image(path)
                pixels.append(self._tower.preprocess([image]))
            except Exception as error:  # Pillow raises many kinds of errors for a damaged file
                if path in self._named:
                    raise DataError(f"{path}: cannot be read as an image ({first_line(error)})") from error
                self.skipped.append((str(path), first_line(error)))
                continue
            self.names.append(str(path))
            if len(self.pictures) < self._pictured:
                image.thumbnail(PICTURED_SIZE)
                self.pictures.append(image)
        return self._tower.encode(torch.cat(pixels)) if pixels else torch.zeros(0)


class TokenInput(Input):
    """A file of ready-made tokens, as `data=features` reads it.

    Raises:
        DataError: the file holds no tokens of a square grid, tokens of another shape than the compressor takes, or a
            value that is not finite.
    """

    def __init__(
        self,
        path: Path,
        extra_tokens: int | None,
        batch_size: int,
        pictured: int,
        *,
        token_grid: int,
        dim: int,
        device: torch.device,
    ) -> None:
        self._source = FeatureSource(path, Asked(extra_tokens, "--tokens", "--extra-tokens"))
        found, wanted = (self._source.token_grid, self._source.dim), (token_grid, dim)
        if found != wanted:
            raise DataError(
                f"--tokens: {path} has {found[0]} x {found[0]} tokens of {found[1]} channels, the compressor takes "
                f"{wanted[0]} x {wanted[0]} of {wanted[1]}; give tokens of the encoder that it was trained on"
            )
        super().__init__([item.key for item in self._source.items], batch_size, pictured, device)
        self.notes = self._source.notes

    def _read(self, numbers: range) -> Tensor:
        tokens = []
        for number in numbers:
            try:
                tokens.append(self._source.load(number))
            except ValueError as error:
                raise DataError(f"--tokens: {self._given[number]}: {error}; write it again") from error
            self.names.append(self._given[number])
        return torch.stack(tokens).to(self.device)

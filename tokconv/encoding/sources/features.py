"""Ready-made tokens in files (`feature_files.py`), instead of images and a tower.

Shapes: n images per file, N = G * G patch tokens, C channels.

Folders and files with the names of splits declare the split, as those of images do. Labels number the class names that
a file lists; without names, a number means the same class in every file.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.base import ImageItem, basic_identity, content_digest, digest, file_stats, probes
from tokconv.encoding.sources.feature_files import (
    CLASS_NAMES,
    EXTRA_TOKENS,
    SUFFIXES,
    Asked,
    TokenFile,
    describe_file,
)
from tokconv.encoding.sources.layout import Part, arrange, find_files
from tokconv.encoding.sources.walk import count_suffixes
from tokconv.encoding.towers.families import SHORT_NAMES
from tokconv.errors import DataError
from tokconv.system.files import local_path

GIVEN = "given tokens"
"""Stands in place of the revision in the identity of an encoder."""
PROBE_VALUES = 256
NOTHING_ASKED = Asked()


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


class FeatureSource:
    """Tokens in files, read row by row: memory holds one image, whatever the size of a file. Can be pickled.

    Args:
        root: a file, or a folder of them at any depth.
        asked: how many tokens come before the patches; they are left out.

    Raises:
        DataError: there are no files, or one has another shape or dtype, is pickled, or does not match the others; or
            files of a held-out split cannot be told from those to train on.

    Example:
        >>> FeatureSource("features.npy").load(0).shape      # doctest: +SKIP
        torch.Size([576, 1024])
    """

    name = "features"

    def __init__(self, root: str | os.PathLike[str], asked: Asked = NOTHING_ASKED) -> None:
        self.root, self.asked = local_path(root), asked
        # The key of the root itself, where it is a file, is the file's name.
        above = self.root.parent if self.root.is_file() else self.root
        notes, parts = self._parts()
        files = [
            describe_file(above / key, key, part.split, asked)
            for part in parts
            for key in sorted(part.files, key=lambda key: key.split("/"))
        ]
        for file in files:
            _check_alike(file, files[0])
        self.dim, self.token_grid = files[0].dim, files[0].grid
        self.notes = (*notes, *_left_out(files[0], asked))
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
        tokens = file.read(row).float()[-(self.token_grid**2) :]
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
        file, row = self._places[index]
        return content_digest(file.read(row).float().contiguous().numpy().tobytes())

    def probed_identity(self) -> dict[str, Any]:
        values = (file.read(row).flatten()[:PROBE_VALUES].tolist() for file, row in probes(self._places))
        return {**basic_identity(self), "values": digest(values)}

    def _parts(self) -> tuple[tuple[str, ...], tuple[Part, ...]]:
        """Return notes about what is not read, and the files by split."""
        key = self.asked.root_key
        if not self.root.exists():
            raise DataError(f"{key}: there is no {str(self.root)!r}; give a file of tokens or a folder of them")
        needed = f"it needs files ending in {' or '.join(SUFFIXES)}, of shape [images, tokens, channels]"
        if self.root.is_file():
            if not self.root.name.lower().endswith(SUFFIXES):
                raise DataError(f"{key}: no tokens in {str(self.root)!r}; {needed}")
            return (), (Part("", None, (self.root.name,)),)
        tree = find_files(self.root, SUFFIXES)
        if not tree.files:
            found = f"; there are only {count_suffixes(tree.ignored)}" if tree.ignored else ""
            raise DataError(f"{key}: no tokens in {str(self.root)!r}; {needed}{found}")
        layout = arrange(self.root, tree, "tokens", files_are_splits=True)
        return layout.notes, layout.parts


def _match_classes(files: Sequence[TokenFile]) -> tuple[tuple[str, ...], dict[str, tuple[int, ...]]]:
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


def _check_alike(file: TokenFile, first: TokenFile) -> None:
    if (file.num_tokens, file.dim) != (first.num_tokens, first.dim):
        raise DataError(
            f"data.root: {file.path} has {file.num_tokens} tokens of {file.dim} channels, {first.path} has "
            f"{first.num_tokens} of {first.dim}; all tokens of a store must come from one encoder"
        )
    if bool(file.labels) != bool(first.labels):
        raise DataError(f"data.root: only one of {file.path} and {first.path} has labels; label all files or none")


def _left_out(file: TokenFile, asked: Asked) -> tuple[str, ...]:
    """Return a note about the tokens that are no patches."""
    count = file.extra_tokens
    if not count:
        return ()
    first = "the first token is" if count == 1 else f"the first {count} tokens are"
    taken = EXTRA_TOKENS[count] if asked.extra_tokens is None else f"{asked.extra_key}={count}"
    return (f"{first} left out of {file.num_tokens} per image ({taken}), so that {file.grid} x {file.grid} stay",)

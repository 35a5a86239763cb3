"""Reading a token store, which is encoded once, shared by all trials, and memory-mapped. `writer.py` is the mirror.

Shapes: B requested images, N = G * G tokens, C channels.

A store is a directory of shards (`format.py` describes them) and an `index.json` that is written last, so that a store
with an index is complete.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokconv.errors import StoreError, printable
from tokconv.store.format import (
    FORMAT_VERSION,
    INDEX,
    OLD_INDEX,
    SETTINGS,
    SHARD_NAME,
    ShardHeader,
    Skipped,
    StoreSettings,
    check_settings,
    digest,
    map_shard,
    read_header,
    read_json,
    unpack,
)
from tokconv.system.files import file_digest

MAX_NAMED = 10
"""The classes that `TokenStore.summary` names."""


@dataclass(frozen=True)
class _Shard:
    name: str
    count: int
    sha256: str
    skipped: tuple[Skipped, ...]


class TokenStore:
    """A complete store, read-only; open one with `TokenStore.open`. It can be pickled, and used after a fork.

    Attributes:
        path, settings, fingerprint: the fingerprint is a sha256 of the index, and thereby of every shard.
        origin: the URL that the store was fetched from (`tokconv.store.remote`); None if it was not fetched.
        token_grid, num_tokens, dim, num_images: G, N, C, and the number of images that could be read.
        mean: [C] float32, of the training split.
        scale: of (tokens - mean) / scale the average channel has unit variance.
        summary: what it holds, in one line.
        class_names, keys: names of the classes; keys of the images, in order.
        train_indices, val_indices: int64, ascending.
        skipped: images that could not be read, with the reason.
        version: 0, or how often images that could be read only later were added.
        derived_dir: for what is computed from the store (`tokconv.store.cache`); no part of the fingerprint.
    """

    def __init__(self, path: Path, index: Mapping[str, Any]) -> None:
        self.path = path
        self.origin: str | None = None
        self.settings = StoreSettings.from_json(index["settings"])
        self.fingerprint = digest(index)
        self.version = int(index.get("version", 0))
        self.token_grid, self.dim = self.settings.token_grid, self.settings.dim
        self.num_tokens, self.class_names = self.settings.num_tokens, self.settings.class_names
        self.keys: tuple[str, ...] = tuple(index["keys"])
        self.num_images = len(self.keys)
        self.mean = torch.tensor(index["mean"], dtype=torch.float32)
        variance = torch.tensor(index["variance"], dtype=torch.float64)
        self.scale = math.sqrt(variance.mean()) or 1.0
        is_val = torch.zeros(self.num_images, dtype=torch.bool)
        is_val[torch.tensor(index["val"], dtype=torch.int64)] = True
        self.val_indices, self.train_indices = is_val.nonzero().flatten(), (~is_val).nonzero().flatten()
        self._shards = [
            _Shard(entry["name"], entry["count"], entry["sha256"], tuple(itertools.starmap(Skipped, entry["skipped"])))
            for entry in index["shards"]
        ]
        self.skipped = tuple(image for shard in self._shards for image in shard.skipped)
        self._ends = list(itertools.accumulate(shard.count for shard in self._shards))
        self._mapped: dict[int, dict[str, Tensor]] = {}
        if len(self.mean) != self.dim or variance.shape != self.mean.shape or index["num_images"] != self.num_images:
            raise ValueError("lengths differ")
        if self._ends[-1] != self.num_images or len(self._shards) != self.settings.num_shards:
            raise ValueError("shards and images differ")

    @classmethod
    def open(cls, path: str | Path, verify: bool = False, *, fingerprint: str | None = None) -> TokenStore:
        """Open a store; check headers and sizes of all shards.

        Args:
            verify: also check the sha256 of every shard, which reads them all.
            fingerprint: of the version to open; None opens the newest one.

        Raises:
            StoreError: the store is missing, incomplete, of another format version, or damaged, or has no such version.

        Example:
            >>> TokenStore.open("runs/stores/digits").tokens(torch.tensor([0, 5])).shape      # doctest: +SKIP
            torch.Size([2, 576, 64])
        """
        path = Path(path)
        if not path.is_dir():
            raise StoreError(f"there is no token store {path}; run: tokconv encode")
        if not (path / INDEX).exists():
            raise StoreError(f"{path} is not a complete token store; run tokconv encode again to resume")
        index = read_json(path / INDEX) if fingerprint is None else _index_of(path, fingerprint)
        if index is None:
            raise StoreError(f"{path}: holds another store than before; encode to another place instead")
        if index.get("format_version") != FORMAT_VERSION:
            raise StoreError(
                f"{path}: format version {index.get('format_version')!r}, this tokconv reads {FORMAT_VERSION}; "
                "encode it again with this version, or use the version that wrote it"
            )
        try:
            store = cls(path, index)
        except (KeyError, TypeError, ValueError, IndexError, RuntimeError) as error:
            raise StoreError(f"{path / INDEX}: damaged ({error}); remove the directory and encode again") from error
        store._check_shards(verify)
        return store

    @classmethod
    def find(cls, path: Path, settings: StoreSettings) -> TokenStore | None:
        """Return the complete store of these settings, or None if there is none yet.

        Raises:
            StoreError: the store is damaged, or its settings differ.
        """
        if not (path / INDEX).exists() and not (path / SETTINGS).exists():
            return None
        check_settings(path, settings)
        return cls.open(path) if (path / INDEX).exists() else None

    @classmethod
    def with_fingerprint(cls, stores: Path, fingerprint: str | None) -> TokenStore | None:
        """Return the store of this fingerprint from a directory of stores, or None if it is not there.

        Only indices are read to find it; a damaged index is that of another store.

        Raises:
            StoreError: the shards of this store are damaged.
        """
        for path in sorted(path.parent for path in stores.glob(f"*/{INDEX}")):
            if _index_of(path, fingerprint) is not None:
                return cls.open(path, fingerprint=fingerprint)
        return None

    def shard_paths(self) -> list[Path]:
        """Return the file of every shard, in order."""
        return [self.path / shard.name for shard in self._shards]

    @property
    def summary(self) -> str:
        """One line about what it holds: "24 images, 20 for training and 4 held out; 3 classes: a, b, c; ..."."""
        names = self.class_names
        classes = f"{len(names)} class{'' if len(names) == 1 else 'es'}: {', '.join(map(printable, names[:MAX_NAMED]))}"
        lacking = f", {len(self.skipped)} more could not be read" if self.skipped else ""
        views = self.settings.source.get("views", 1)
        return (
            f"{self.num_images} images, {len(self.train_indices)} for training"
            f"{f' ({views} views of each)' if views > 1 else ''} and {len(self.val_indices)} held out{lacking}; "
            f"{classes if names else 'no classes'}{', ...' if len(names) > MAX_NAMED else ''}; "
            f"{self.num_tokens} tokens of {self.dim} channels"
        )

    @property
    def derived_dir(self) -> Path:
        """The folder of what is computed from the store; it need not exist."""
        return self.path / (f"derived-{self.version}" if self.version else "derived")

    @cached_property
    def labels(self) -> Tensor | None:
        """[num_images] int64, -1 for an image without a class; None for an unlabelled source."""
        if not self.class_names:
            return None
        return torch.cat([self._shard(number)["labels"] for number in range(len(self._shards))])

    def tokens(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        """Read the tokens of some images, in the given order: [B, N, C] float32.

        Args:
            indices: [B] int64.
            out: [at least B, N, C] float32 on the CPU to write them to; a view of it is returned. New memory costs
                several times as much as the reading.

        Raises:
            IndexError: an index is not in [0, num_images).
        """
        wanted = indices.flatten().tolist()
        out = torch.empty(len(wanted), self.num_tokens, self.dim) if out is None else out[: len(wanted)]
        for place, image in enumerate(wanted):
            if not 0 <= image < self.num_images:
                raise IndexError(f"image {image} of a store with {self.num_images} images")
            number = bisect.bisect_right(self._ends, image)
            unpack(self._shard(number), image - self._ends[number] + self._shards[number].count, out[place])
        return out

    def batches(self, batches: Sequence[Tensor], *, ahead: bool = False) -> Iterator[Tensor]:
        """Yield the tokens of batch after batch, as `tokens` returns them; each is valid until the next is requested.

        Args:
            ahead: a thread reads the next batch meanwhile, into pinned memory if there is a GPU. While the CPU's
                cores are busy, that thread costs more than the reading (docs/performance.md has the measurement).
        """
        if not batches:
            return
        shape = (max(map(len, batches)), self.num_tokens, self.dim)
        if not ahead:
            out = torch.empty(shape)
            for indices in batches:
                yield self.tokens(indices, out)
            return
        buffers = [torch.empty(shape, pin_memory=torch.cuda.is_available()) for _ in range(2)]
        with ThreadPoolExecutor(1, "tokens") as reader:
            following = reader.submit(self.tokens, batches[0], buffers[0])
            for number in range(1, len(batches) + 1):
                tokens = following.result()
                if number < len(batches):
                    following = reader.submit(self.tokens, batches[number], buffers[number % 2])
                yield tokens

    def standardise(self, tokens: Tensor) -> Tensor:
        """Subtract the training split's mean from tokens [..., C] on any device, and divide them by its scale."""
        return (tokens - self.mean.to(tokens.device)) / self.scale

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_mapped": {}}

    def _shard(self, number: int) -> dict[str, Tensor]:
        if number not in self._mapped:
            self._mapped[number] = map_shard(self.path / self._shards[number].name)
        return self._mapped[number]

    def _check_shards(self, verify: bool) -> None:
        for number, shard in enumerate(self._shards):
            if not isinstance(shard.name, str) or not SHARD_NAME.fullmatch(shard.name):
                raise StoreError(f"{self.path / INDEX}: {shard.name!r} is not a shard's name; do not use this store")
            path = self.path / shard.name
            advice = f"remove it and {INDEX}, then run tokconv encode again"
            try:
                header = read_header(path, self.settings, number)
            except StoreError as error:
                raise StoreError(f"{error}; {advice}") from error
            if header != ShardHeader(shard.count, shard.skipped):
                raise StoreError(f"{path}: does not match the index; {advice}")
            if verify and file_digest(path) != shard.sha256:
                raise StoreError(f"{path}: its content changed since it was written (sha256); {advice}")


def _index_of(path: Path, fingerprint: str | None) -> dict[str, Any] | None:
    """Return the index of the version of this fingerprint in a store's directory; None if there is none."""
    for candidate in (path / INDEX, *sorted(path.glob(OLD_INDEX))):
        with suppress(StoreError):
            index = read_json(candidate)
            if digest(index) == fingerprint:
                return index
    return None

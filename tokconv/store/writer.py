"""Writing a token store: shards first, `index.json` last. `tokconv.store.reader` is the mirror.

Shapes: n images of a shard, N = G * G tokens, C channels.

An interrupted encode resumes at the first shard that is missing or damaged. `settings.json`, written first, is the only
other state: it distinguishes an unfinished store of other settings from one to resume.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from filelock import FileLock
from safetensors.torch import save_file
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.store.format import (
    FORMAT_VERSION,
    INDEX,
    METADATA,
    SETTINGS,
    ShardHeader,
    Skipped,
    StoreSettings,
    check_settings,
    map_shard,
    read_header,
    shard_name,
    unpack,
)
from tokconv.system.files import atomic_path, file_digest, write_json

LOCK = ".lock"
CHUNK = 16


class StoreWriter:
    """The only writer of a store: a second writer of the same directory waits for the first.

    Use it as a context manager; leaving it early, by an error or Ctrl-C, keeps every finished shard.

    Args:
        directory: is created if it is missing.
        settings: what the store will hold.

    Raises:
        StoreError: (on entering) the directory holds a store of other settings, or other files.

    Example:
        >>> settings = StoreSettings(encoder={}, source={}, num_items=2, token_grid=2, dim=8)
        >>> with StoreWriter(Path("store"), settings) as writer:      # doctest: +SKIP
        ...     writer.write_shard(0, pack(torch.randn(2, 4, 8), settings.dtype), items=[0, 1])
        ...     writer.finish(keys=["a", "b"], splits=["train", "val"])
    """

    def __init__(self, directory: Path, settings: StoreSettings) -> None:
        self.directory, self.settings = Path(directory), settings
        self.names = {number: shard_name(number) for number in range(settings.num_shards)}
        """The file of each shard; another one once a shard was written for a later version."""
        self._lock = FileLock(self.directory / LOCK)

    def __enter__(self) -> StoreWriter:
        try:
            self.directory.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"data.store: cannot create {self.directory} ({error.strerror})") from error
        self._lock.acquire()
        try:
            self._check_or_write_settings()
        except BaseException:
            self._lock.release()
            raise
        return self

    def __exit__(self, *error: object) -> None:
        self._lock.release()

    @property
    def complete(self) -> bool:
        """Whether the index exists: another writer may have finished while this one waited."""
        return (self.directory / INDEX).exists()

    def headers(self) -> dict[int, ShardHeader]:
        """Return the headers of the shards that are on disk and whole, by number."""
        found: dict[int, ShardHeader] = {}
        for number in range(self.settings.num_shards):
            with suppress(StoreError):
                found[number] = self._header(number)
        return found

    def write_shard(
        self,
        number: int,
        packed: Mapping[str, Tensor],
        items: Sequence[int],
        labels: Sequence[int] | None = None,
        skipped: Sequence[Skipped] = (),
        contents: Tensor | None = None,
        version: int = 0,
    ) -> None:
        """Write one shard atomically.

        Args:
            packed: `pack` of the tokens [n, N, C].
            items: their source indices, ascending.
            labels: classes of the items, if the settings have class names.
            skipped: the other images that the shard covers.
            contents: [n, DIGEST_BYTES] uint8, digests of the content of the items.
            version: of the store; the shard of another version stays as it is.

        Raises:
            StoreError: items and skipped images are not all that the shard covers.
        """
        covered = sorted([*items, *(image.item for image in skipped)])
        if covered != list(self.settings.shard_items(number)):
            raise StoreError(f"shard {number} must account for every one of its images, as stored or skipped")
        tensors = {name: value.contiguous() for name, value in packed.items()}
        tensors["items"] = torch.tensor(items, dtype=torch.int64)
        if labels is not None:
            tensors["labels"] = torch.tensor(labels, dtype=torch.int64)
        if contents is not None:
            tensors["contents"] = contents.contiguous()
        self.names[number] = shard_name(number, version)
        # A single entry: safetensors writes several in random order, and a resumed shard must have the same bytes.
        content = json.dumps({"settings": self.settings.digest(), "shard": number, "skipped": skipped})
        with atomic_path(self._path(number)) as temporary:
            save_file(tensors, temporary, {METADATA: content})
            read_header(temporary, self.settings, number)

    def remove_leftovers(self) -> None:
        """Remove what a killed process left half written; no other process may be writing."""
        for leftover in self.directory.glob(".*.tmp"):
            leftover.unlink()

    def stored_items(self) -> list[int]:
        """Return the source indices of all stored images, in order. Raises StoreError as `read_header` does."""
        missing = {image.item for number in range(self.settings.num_shards) for image in self._header(number).skipped}
        return [item for item in range(self.settings.num_items) if item not in missing]

    def finish(self, keys: Sequence[str], splits: Sequence[str], version: int = 0) -> None:
        """Hash the shards, compute the moments of the training split, write the index.

        The index of an earlier version is kept under another name.

        Args:
            keys: of all stored images, in order.
            splits: "train" or "val" for each of them.
            version: of the store.

        Raises:
            StoreError: a shard is missing or damaged, the lengths differ, or there are no training images.
        """
        headers = [self._header(number) for number in range(self.settings.num_shards)]
        num_images = sum(header.count for header in headers)
        if not num_images == len(keys) == len(splits) or "train" not in splits:
            raise StoreError(f"{self.directory}: {num_images} images, {len(keys)} keys, {len(splits)} splits")
        mean, variance = self._moments(torch.tensor([split == "train" for split in splits]))
        index = {
            "format_version": FORMAT_VERSION,
            "settings": self.settings.to_json(),
            "num_images": num_images,
            "shards": [
                {
                    "name": self.names[number],
                    "count": header.count,
                    "sha256": file_digest(self._path(number)),
                    "skipped": header.skipped,
                }
                for number, header in enumerate(headers)
            ],
            "mean": mean,
            "variance": variance,
            "val": [position for position, split in enumerate(splits) if split == "val"],
            "keys": list(keys),
            **({"version": version} if version else {}),
        }
        if self.complete:
            before = (self.directory / INDEX).read_bytes()
            with atomic_path(self.directory / f"index-{version - 1}.json") as temporary:
                temporary.write_bytes(before)
        write_json(self.directory / INDEX, index)

    def _check_or_write_settings(self) -> None:
        """Write the settings before any shard, so that an unfinished store can also tell which of them differ."""
        path = self.directory / SETTINGS
        if path.exists() or self.complete:
            check_settings(self.directory, self.settings)
            self.remove_leftovers()
            return
        if any(entry.name != LOCK for entry in self.directory.iterdir()):
            raise StoreError(f"data.store: {self.directory} holds other files; choose a new or an empty directory")
        write_json(path, self.settings.to_json())

    def _path(self, number: int) -> Path:
        return self.directory / self.names[number]

    def _header(self, number: int) -> ShardHeader:
        return read_header(self._path(number), self.settings, number)

    def _moments(self, is_train: Tensor) -> tuple[list[float], list[float]]:
        """Compute mean and variance [C] of the training tokens as stored, in one pass, a few images in memory.

        Sums are float64 and results float32, so that the number of threads does not change the fingerprint.
        """
        total, squares = torch.zeros(2, self.settings.dim, dtype=torch.float64)
        buffer = torch.empty(CHUNK, self.settings.num_tokens, self.settings.dim)
        start = 0
        for number in range(self.settings.num_shards):
            tensors = map_shard(self._path(number))
            rows = is_train[start : start + len(tensors["items"])].nonzero().flatten()
            start += len(tensors["items"])
            for part in rows.split(CHUNK):
                chunk = buffer[: len(part)]
                for place, row in enumerate(part.tolist()):
                    unpack(tensors, row, chunk[place])
                tokens = chunk.double()
                total += tokens.sum(dim=(0, 1))
                squares += tokens.square().sum(dim=(0, 1))
        mean = total / (int(is_train.sum()) * self.settings.num_tokens)
        variance = squares / (int(is_train.sum()) * self.settings.num_tokens) - mean.square()
        return mean.float().tolist(), variance.clamp_min(0).float().tolist()

"""One shard after another: its images are read, preprocessed, encoded and written.

Shapes: B images, N tokens of C channels each, H = W = image size.

Worker processes decode and preprocess; this process encodes and writes. Memory holds one shard, whatever the number of
images.
"""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokconv.config.tree import Config
from tokconv.encoding.images import ImageSource
from tokconv.encoding.job import EncodeJob
from tokconv.encoding.sources.features import FeatureSpec
from tokconv.encoding.towers.tower import VisionTower, preprocess
from tokconv.errors import DataError, first_line
from tokconv.store.format import DIGEST_BYTES, Skipped, check_rounding, pack
from tokconv.store.writer import StoreWriter

CountImages = Callable[[int, int], None]
"""Called with the number of images that were just encoded or skipped, and how many of them were skipped."""


@contextmanager
def readers_explained() -> Iterator[None]:
    """Raise DataError if a process that reads images was killed; torch raises wherever this process then is."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError(
            f"data.num_workers: a process that reads images was killed ({first_line(error)}); if memory or /dev/shm is "
            "full, lower it (0 reads in this process) or data.encode_batch_size, and give the same command again: "
            "finished shards are kept"
        ) from error


class ShardEncoder:
    """The tower, and the processes that read and preprocess its images. They live as long as this object.

    Ready-made tokens (data.source=features) need no tower: they are only read and written as a store. The bits of a
    shard depend on the job, the batch size and the kind of device, not on which process encodes it or in which order.

    Args:
        config: `model.clip` and `data` are read.
        device: where the tower runs.

    Raises:
        DataError, ConfigError: as `VisionTower`.
    """

    def __init__(self, config: Config, job: EncodeJob, device: torch.device) -> None:
        self.config, self.job = config, job
        ready_made = isinstance(job.spec, FeatureSpec)
        self.tower = None if ready_made else VisionTower(config.model.clip, device)
        self._batches: list[range] = []
        self._loader: DataLoader[Any] | None = None

    @readers_explained()
    def write(self, writer: StoreWriter, numbers: Sequence[int], count: CountImages) -> None:
        """Encode these shards and write each when it is whole.

        Raises:
            StoreError: the dtype cannot hold a token.
            DataError: a process that reads images was killed.
        """
        settings, size = self.job.settings, self.config.data.encode_batch_size
        # No batch spans two shards: a resumed shard gets the same batches, thus the same bits.
        self._batches[:] = [
            covered[start : start + size]
            for covered in map(settings.shard_items, numbers)
            for start in range(0, len(covered), size)
        ]
        self._loader = self._loader or self.read(self._batches)
        no_tokens = torch.zeros(0, settings.num_tokens, settings.dim)
        for number, batches in itertools.groupby(self._loader, key=lambda batch: batch.first // settings.shard_size):
            parts = [pack(no_tokens, settings.dtype)]
            items: list[int] = []
            skipped: list[Skipped] = []
            contents: list[bytes] = []
            for batch in batches:
                if batch.items:
                    tokens = self.encode(batch.loaded)
                    parts.append(pack(tokens, settings.dtype))
                    if len(parts) == 2:  # one batch tells
                        check_rounding(tokens, parts[1], settings.dtype)
                items += batch.items
                skipped += batch.skipped
                contents += batch.contents
                count(len(batch.items) + len(batch.skipped), len(batch.skipped))
            packed = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
            writer.write_shard(number, packed, items, self.labels(items), skipped, digests(contents))

    def labels(self, items: Sequence[int]) -> list[int] | None:
        """Return the classes of some source indices, -1 for none; None for an unlabelled source."""
        found = [self.job.source.items[item].label for item in items]
        return [-1 if label is None else label for label in found] if self.job.settings.class_names else None

    def encode(self, loaded: Tensor) -> Tensor:
        """Turn what `read` yields, pixels [B, 3, H, W] or ready-made tokens, into tokens [B, N, C]."""
        return loaded if self.tower is None else self.tower.encode(loaded)

    def read(self, batches: Sequence[Sequence[int]]) -> DataLoader[Any]:
        """Yield one `Batch` per list of source indices; the next ones are read while earlier ones are encoded."""
        # A daemonic process cannot have children; more workers than cores or batches would only cost memory.
        daemon = multiprocessing.current_process().daemon
        workers = 0 if daemon else min(self.config.data.num_workers, os.cpu_count() or 1, len(batches))
        return DataLoader(
            _Images(self.job.source, None if self.tower is None else self.tower.processor),
            batch_sampler=batches,  # type: ignore[arg-type]  # ranges serve as its lists of indices, too
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=self.tower is not None and self.tower.device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
        )


class Batch(NamedTuple):
    """Some images of one shard."""

    first: int
    """Source index of the first image, readable or not."""
    items: list[int]
    """Source indices of the readable images."""
    loaded: Tensor
    """The readable images, float32: pixels [B, 3, H, W], or ready-made tokens [B, N, C]."""
    skipped: list[Skipped]
    contents: list[bytes]
    """Digests of the content of the readable images."""


def digests(contents: Sequence[bytes]) -> Tensor:
    """Return digests as a shard stores them, [n, DIGEST_BYTES] uint8."""
    return torch.tensor([list(content) for content in contents], dtype=torch.uint8).view(-1, DIGEST_BYTES)


def reason_of(error: Exception) -> str:
    """Return why an image cannot be read, as a store records it."""
    text = getattr(error, "strerror", None) or str(error) or "no reason given"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


class _Images(Dataset[tuple[int, Tensor | str, bytes]]):
    """Pixels [3, H, W] of an image or its ready-made tokens [N, C], or the reason why it cannot be read; its digest."""

    def __init__(self, source: ImageSource, processor: Any) -> None:
        self.source, self.processor = source, processor

    def __getitem__(self, index: int) -> tuple[int, Tensor | str, bytes]:
        try:
            # First the digest: a file that changes in between then has another one the next time.
            content, loaded = self.source.content(index), self.source.load(index)
            return index, loaded if isinstance(loaded, Tensor) else preprocess(self.processor, [loaded])[0], content
        except Exception as error:  # a decoder can raise anything for a damaged image, which must not end the encode
            return index, reason_of(error), b""


def _collate(images: Sequence[tuple[int, Tensor | str, bytes]]) -> Batch:
    good = [(item, loaded, content) for item, loaded, content in images if isinstance(loaded, Tensor)]
    loaded = torch.stack([loaded for _, loaded, _ in good]) if good else torch.zeros(0)
    skipped = [Skipped(item, reason) for item, reason, _ in images if isinstance(reason, str)]
    return Batch(images[0][0], [item for item, _, _ in good], loaded, skipped, [content for _, _, content in good])


def _ignore_interrupt(worker: int) -> None:
    """Ignore Ctrl-C, which reaches the whole process group: the main process handles it and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Images to a token store: source -> frozen tower -> shards, once.

Shapes: B images, N tokens of C channels each, H = W = image size.

Workers decode and preprocess; this process encodes and writes. Memory holds one shard, whatever the number of images.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tokconv.config import Config
from tokconv.encoder import EncoderSpec, VisionTower, describe, preprocess
from tokconv.errors import DataError
from tokconv.images import ImageSource, assign_split, open_source
from tokconv.shards import Skipped, StoreSettings, default_shard_size, image_bytes, pack
from tokconv.storage import check_url, is_url
from tokconv.store import TokenStore
from tokconv.store_cache import encode_remote, exists_remote, staging_dir
from tokconv.writer import StoreWriter

STORES = Path("runs/stores")


@dataclass(frozen=True)
class EncodeProgress:
    """How far an encode is; images of shards that were there before count as done."""

    done: int
    total: int
    skipped: int
    seconds: float


@dataclass(frozen=True)
class EncodePlan:
    """What an encode would do."""

    path: Path
    url: str | None
    """Where it goes when `data.store` is a URL; `path` is then where it is encoded."""
    images: int
    tokens_per_image: int
    bytes: int
    shards: int
    complete: bool


def plan(config: Config) -> EncodePlan:
    """What `encode` would write, without loading weights or opening images.

    Raises:
        DataError, ConfigError, StoreError: as `encode`.

    Example:
        >>> plan(compose()).bytes      # doctest: +SKIP
        132489216
    """
    job = _prepare(config)
    settings = job.settings
    return EncodePlan(
        path=job.path,
        url=job.url,
        images=settings.num_items,
        tokens_per_image=settings.num_tokens,
        bytes=settings.num_items * image_bytes(settings.token_grid, settings.dim, settings.dtype),
        shards=settings.num_shards,
        complete=exists_remote(job.url, settings) if job.url else TokenStore.find(job.path, settings) is not None,
    )


def encode(
    config: Config, *, device: str | None = None, progress: Callable[[EncodeProgress], None] | None = None
) -> TokenStore:
    """The token store of this config: opened when it exists, resumed when it is unfinished, else encoded.

    Args:
        config: `model.clip` and `data` are read.
        device: where the tower runs; None takes CUDA when there is one.
        progress: called after every batch.

    Raises:
        DataError: no encoder, no images, or fewer than two readable ones.
        ConfigError: a layer that the tower does not have.
        StoreError: `data.store` holds a store of other settings, or one that is damaged.
        StorageError: `data.store` is a URL whose server refuses or does not answer.

    Example:
        >>> store = encode(compose(["data.subset=64"]))      # doctest: +SKIP
    """
    job = _prepare(config)
    if job.url is not None:

        def encode_here(path: Path) -> TokenStore:
            here = dataclasses.replace(config, data=dataclasses.replace(config.data, store=str(path)))
            return encode(here, device=device, progress=progress)

        return encode_remote(job.url, job.settings, encode_here)
    store = TokenStore.find(job.path, job.settings)
    if store is not None:
        return store
    with StoreWriter(job.path, job.settings) as writer:
        if not writer.complete:
            _write_shards(config, job, writer, torch.device(device or _default_device()), progress)
            _finish(config, job, writer)
    return TokenStore.open(job.path)


@dataclass(frozen=True)
class _Job:
    spec: EncoderSpec
    source: ImageSource
    settings: StoreSettings
    path: Path
    url: str | None = None
    """Where the store is when that is no directory; it is encoded in `path` all the same."""


def _prepare(config: Config) -> _Job:
    spec, source, data = describe(config.model.clip), open_source(config.data), config.data
    settings = StoreSettings(
        encoder=spec.identity(),
        source=source.identity(),
        num_items=len(source.items),
        token_grid=spec.token_grid,
        dim=spec.dim,
        dtype=data.dtype,
        val_fraction=data.val_fraction,
        class_names=source.class_names,
        shard_size=default_shard_size(spec.token_grid, spec.dim, data.dtype),
    )
    place = data.store or f"{STORES}/{source.name}-{spec.slug}-{settings.digest()[:8]}"
    if is_url(place):
        url = check_url("data.store", place)
        return _Job(spec, source, settings, staging_dir(url, settings), url)
    return _Job(spec, source, settings, Path(place).expanduser())


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


def _write_shards(
    config: Config,
    job: _Job,
    writer: StoreWriter,
    device: torch.device,
    progress: Callable[[EncodeProgress], None] | None,
) -> None:
    """Encode every shard that is not there yet."""
    start, settings, ready = time.monotonic(), job.settings, writer.headers()
    missing = [number for number in range(settings.num_shards) if number not in ready]
    if not missing:
        return
    done = sum(len(settings.shard_items(number)) for number in ready)
    num_skipped = sum(len(header.skipped) for header in ready.values())
    tower = VisionTower(config.model.clip, device)
    loader = _loader(config, job, tower, missing)
    for number, batches in itertools.groupby(loader, key=lambda batch: batch.first // settings.shard_size):
        shard = _Shard(settings)
        for batch in batches:
            shard.add(batch, tower)
            done += len(batch.items) + len(batch.skipped)
            num_skipped += len(batch.skipped)
            if progress is not None:
                progress(EncodeProgress(done, settings.num_items, num_skipped, time.monotonic() - start))
        shard.write(writer, number, job.source)


class _Shard:
    """One shard while it fills, in the dtype it will be stored in."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.items: list[int] = []
        self.skipped: list[Skipped] = []
        nothing = torch.zeros(0, settings.num_tokens, settings.dim)
        self.packed = [pack(nothing, settings.dtype)]

    def add(self, batch: _Batch, tower: VisionTower) -> None:
        if batch.items:
            self.packed.append(pack(tower.encode(batch.pixels), self.settings.dtype))
        self.items += batch.items
        self.skipped += itertools.starmap(Skipped, batch.skipped)

    def write(self, writer: StoreWriter, number: int, source: ImageSource) -> None:
        packed = {name: torch.cat([part[name] for part in self.packed]) for name in self.packed[0]}
        labels = [source.items[item].label for item in self.items] if self.settings.class_names else None
        numbers = None if labels is None else [-1 if label is None else label for label in labels]
        writer.write_shard(number, packed, self.items, numbers, self.skipped)


def _finish(config: Config, job: _Job, writer: StoreWriter) -> None:
    # The split is drawn over the images that could be read, so that neither side is empty for an unreadable one.
    stored = [job.source.items[item] for item in writer.stored_items()]
    if not stored:
        reason = writer.headers()[0].skipped[0].reason
        raise DataError(
            f"data: none of {job.settings.num_items} images could be read (the first: {reason}); "
            f"repair them, remove {job.path} and encode again"
        )
    writer.finish([item.key for item in stored], assign_split(stored, config.data.val_fraction))


class _Batch(NamedTuple):
    """Some images of one shard: the readable ones as pixels [B, 3, H, W] float32, and why others are not."""

    first: int
    items: list[int]
    pixels: Tensor
    skipped: list[tuple[int, str]]


class _Images(Dataset[tuple[int, Tensor | str]]):
    """Pixels [3, H, W] of an image, or the reason why there are none."""

    def __init__(self, source: ImageSource, processor: Any) -> None:
        self.source, self.processor = source, processor

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            return index, preprocess(self.processor, [self.source.load(index)])[0]
        except Exception as error:  # a damaged image can raise anything in a decoder; it must not end the encode
            text = getattr(error, "strerror", None) or str(error) or "no reason given"
            return index, f"{type(error).__name__}: {text.splitlines()[0]}"


def _collate(images: Sequence[tuple[int, Tensor | str]]) -> _Batch:
    good = [(item, pixels) for item, pixels in images if isinstance(pixels, Tensor)]
    pixels = torch.stack([pixels for _, pixels in good]) if good else torch.zeros(0)
    skipped = [(item, reason) for item, reason in images if isinstance(reason, str)]
    return _Batch(images[0][0], [item for item, _ in good], pixels, skipped)


class _ShardBatches:
    """Source indices by batch, none across two shards: a resumed shard gets the same batches, thus the same bits."""

    def __init__(self, settings: StoreSettings, shards: Sequence[int], batch_size: int) -> None:
        self.settings, self.shards, self.batch_size = settings, shards, batch_size

    def __iter__(self) -> Iterator[range]:
        for number in self.shards:
            items = self.settings.shard_items(number)
            for start in range(0, len(items), self.batch_size):
                yield items[start : start + self.batch_size]

    def __len__(self) -> int:
        return sum(-(-len(self.settings.shard_items(number)) // self.batch_size) for number in self.shards)


def _loader(config: Config, job: _Job, tower: VisionTower, shards: Sequence[int]) -> DataLoader[Any]:
    batches = _ShardBatches(job.settings, shards, config.data.encode_batch_size)
    # A daemonic process may have no children; more workers than cores or batches only cost memory.
    daemon = multiprocessing.current_process().daemon
    return DataLoader(
        _Images(job.source, tower.processor),
        batch_sampler=batches,  # type: ignore[arg-type]  # ranges are the lists of indices it asks for
        num_workers=0 if daemon else min(config.data.num_workers, os.cpu_count() or 1, len(batches)),
        collate_fn=_collate,
        pin_memory=tower.device.type == "cuda",
        worker_init_fn=_ignore_interrupt,
    )


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; this process alone answers it and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

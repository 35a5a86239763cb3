"""Images to a token store: source -> frozen tower -> shards, once.

Shapes: B images, N tokens of C channels each, H = W = image size.

Workers decode and preprocess; this process encodes and writes. Memory holds one shard, whatever the number of images.
`tokconv.encoding.pool` does the same with several encoders.
"""

from __future__ import annotations

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

from tokconv.config.tree import Config
from tokconv.encoding.images import ImageSource, assign_split, describe_tokens, open_source
from tokconv.encoding.sources.features import FeatureSpec
from tokconv.encoding.towers.tower import EncoderSpec, VisionTower, preprocess
from tokconv.errors import DataError
from tokconv.store.format import Skipped, StoreSettings, default_shard_size, image_bytes, pack
from tokconv.store.reader import TokenStore
from tokconv.store.remote import encode_remote, exists_remote, staging_dir
from tokconv.store.writer import StoreWriter
from tokconv.system.storage import check_url, is_url

STORES = Path("runs/stores")

Count = Callable[[int, int], None]
"""Told (images, of them skipped) as they are done."""
WriteShards = Callable[[StoreWriter, Sequence[int], Count], None]
"""Write these shards, which are missing."""


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
    return plan_of(prepare_job(config))


def plan_of(job: Job) -> EncodePlan:
    """As `plan`, of a job that is prepared already."""
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
    config: Config,
    *,
    device: str | None = None,
    progress: Callable[[EncodeProgress], None] | None = None,
    stores: str | Path = STORES,
) -> TokenStore:
    """The token store of this config: opened when it exists, resumed when it is unfinished, else encoded.

    Args:
        config: `model.clip` and `data` are read.
        device: where the tower runs; None takes CUDA when there is one.
        progress: called after every batch.
        stores: where the store is unless `data.store` names it.

    Raises:
        DataError: no encoder, no images, or fewer than two readable ones.
        ConfigError: a layer that the tower does not have.
        StoreError: `data.store` holds a store of other settings, or one that is damaged.
        StorageError: `data.store` is a URL whose server refuses or does not answer.

    Example:
        >>> store = encode(compose(["data.subset=64"]))      # doctest: +SKIP
    """
    job = prepare_job(config, stores)

    def write(writer: StoreWriter, missing: Sequence[int], count: Count) -> None:
        ShardEncoder(config, job, torch.device(device or _default_device())).write(writer, missing, count)

    return complete(config, job, write, progress)


@dataclass(frozen=True)
class Job:
    """What a config asks to be encoded, and where to; it can be pickled."""

    spec: EncoderSpec | FeatureSpec
    source: ImageSource
    settings: StoreSettings
    path: Path
    url: str | None = None
    """Where the store is when that is no directory; it is encoded in `path` all the same."""


def prepare_job(config: Config, stores: str | Path = STORES) -> Job:
    """Open the source and describe the encoder, without loading weights or images. Raises as `encode`."""
    spec, source, data = describe_tokens(config), open_source(config.data), config.data
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
    place = data.store or f"{stores}/{source.name}-{spec.slug}-{settings.digest()[:8]}"
    if is_url(place):
        url = check_url("data.store", place)
        return Job(spec, source, settings, staging_dir(url, settings), url)
    return Job(spec, source, settings, Path(place).expanduser())


def complete(
    config: Config, job: Job, write: WriteShards, progress: Callable[[EncodeProgress], None] | None = None
) -> TokenStore:
    """The store of a job: opened when it is there, else its missing shards written, then the index. As `encode`."""
    if job.url is not None:
        return encode_remote(job.url, job.settings, lambda path: _complete(config, job, path, write, progress))
    return _complete(config, job, job.path, write, progress)


def _complete(
    config: Config,
    job: Job,
    path: Path,
    write: WriteShards,
    progress: Callable[[EncodeProgress], None] | None,
) -> TokenStore:
    store = TokenStore.find(path, job.settings)
    if store is not None:
        return store
    with StoreWriter(path, job.settings) as writer:
        if not writer.complete:
            start, settings, ready = time.monotonic(), job.settings, writer.headers()
            done = sum(len(settings.shard_items(number)) for number in ready)
            skipped = sum(len(header.skipped) for header in ready.values())

            def count(images: int, of_them_skipped: int) -> None:
                nonlocal done, skipped
                done, skipped = done + images, skipped + of_them_skipped
                if progress is not None:
                    progress(EncodeProgress(done, settings.num_items, skipped, time.monotonic() - start))

            missing = [number for number in range(settings.num_shards) if number not in ready]
            if missing:
                write(writer, missing, count)
            _finish(config, job, writer)
    return TokenStore.open(path)


def _default_device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"


class ShardEncoder:
    """The tower, and the processes that read and preprocess its images. They live as long as this object.

    Tokens that are there already need no tower: they are read, and written as a store. A shard's bits depend on the
    job, the batch size and the kind of device, not on who encodes it or after what.

    Args:
        config: `model.clip` and `data` are read.
        device: where the tower runs.

    Raises:
        DataError, ConfigError: as `VisionTower`.
    """

    def __init__(self, config: Config, job: Job, device: torch.device) -> None:
        self.config, self.job = config, job
        given = isinstance(job.spec, FeatureSpec)
        self.tower = None if given else VisionTower(config.model.clip, device)
        self._batches = _ShardBatches(job.settings, (), config.data.encode_batch_size)
        self._loader: DataLoader[Any] | None = None

    def write(self, writer: StoreWriter, numbers: Sequence[int], count: Count) -> None:
        """Encode these shards and write each one when it is whole. Raises StoreError: tokens do not fit the dtype."""
        self._batches.shards = numbers
        self._loader = self._loader or self.read(self._batches)
        size = self.job.settings.shard_size
        for number, batches in itertools.groupby(self._loader, key=lambda batch: batch.first // size):
            shard = _Shard(self.job.settings)
            for batch in batches:
                shard.add(batch, self.encode)
                count(len(batch.items) + len(batch.skipped), len(batch.skipped))
            shard.write(writer, number, self.job.source)

    def encode(self, loaded: Tensor) -> Tensor:
        """Tokens [B, N, C] of what `read` gives: pixels [B, 3, H, W], or tokens that are there already."""
        return loaded if self.tower is None else self.tower.encode(loaded)

    def read(self, batches: _ShardBatches | Sequence[Sequence[int]]) -> DataLoader[Any]:
        """The images of these batches of source indices, as `Batch` each; read ahead while earlier ones are used."""
        # A daemonic process may have no children; more workers than cores or batches only cost memory.
        daemon = multiprocessing.current_process().daemon
        workers = 0 if daemon else min(self.config.data.num_workers, os.cpu_count() or 1, len(batches))
        return DataLoader(
            _Images(self.job.source, None if self.tower is None else self.tower.processor),
            batch_sampler=batches,  # type: ignore[arg-type]  # ranges are the lists of indices it asks for
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=self.tower is not None and self.tower.device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            persistent_workers=workers > 0,
        )


class _Shard:
    """One shard while it fills, in the dtype it will be stored in."""

    def __init__(self, settings: StoreSettings) -> None:
        self.settings = settings
        self.items: list[int] = []
        self.skipped: list[Skipped] = []
        nothing = torch.zeros(0, settings.num_tokens, settings.dim)
        self.packed = [pack(nothing, settings.dtype)]

    def add(self, batch: Batch, encode: Callable[[Tensor], Tensor]) -> None:
        if batch.items:
            self.packed.append(pack(encode(batch.loaded), self.settings.dtype))
        self.items += batch.items
        self.skipped += itertools.starmap(Skipped, batch.skipped)

    def write(self, writer: StoreWriter, number: int, source: ImageSource) -> None:
        packed = {name: torch.cat([part[name] for part in self.packed]) for name in self.packed[0]}
        labels = [source.items[item].label for item in self.items] if self.settings.class_names else None
        numbers = None if labels is None else [-1 if label is None else label for label in labels]
        writer.write_shard(number, packed, self.items, numbers, self.skipped)


def _finish(config: Config, job: Job, writer: StoreWriter) -> None:
    # The split is drawn over the images that could be read, so that neither side is empty for an unreadable one.
    stored = [job.source.items[item] for item in writer.stored_items()]
    if not stored:
        reason = writer.headers()[0].skipped[0].reason
        raise DataError(
            f"data: none of {job.settings.num_items} images could be read (the first: {reason}); "
            f"repair them, remove {job.path} and encode again"
        )
    writer.finish([item.key for item in stored], assign_split(stored, config.data.val_fraction))


class Batch(NamedTuple):
    """Some images of one shard: the readable ones as pixels [B, 3, H, W] or given tokens [B, N, C], float32, and why
    others are not."""

    first: int
    items: list[int]
    loaded: Tensor
    skipped: list[tuple[int, str]]


class _Images(Dataset[tuple[int, Tensor | str]]):
    """Pixels [3, H, W] of an image, or the tokens [N, C] that are given for it, or the reason why there are none."""

    def __init__(self, source: ImageSource, processor: Any) -> None:
        self.source, self.processor = source, processor

    def __getitem__(self, index: int) -> tuple[int, Tensor | str]:
        try:
            loaded = self.source.load(index)
            return index, loaded if isinstance(loaded, Tensor) else preprocess(self.processor, [loaded])[0]
        except Exception as error:  # a damaged image can raise anything in a decoder; it must not end the encode
            text = getattr(error, "strerror", None) or str(error) or "no reason given"
            return index, f"{type(error).__name__}: {text.splitlines()[0]}"


def _collate(images: Sequence[tuple[int, Tensor | str]]) -> Batch:
    good = [(item, loaded) for item, loaded in images if isinstance(loaded, Tensor)]
    loaded = torch.stack([loaded for _, loaded in good]) if good else torch.zeros(0)
    skipped = [(item, reason) for item, reason in images if isinstance(reason, str)]
    return Batch(images[0][0], [item for item, _ in good], loaded, skipped)


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


def _ignore_interrupt(worker: int) -> None:
    """Ctrl-C reaches the whole process group; this process alone answers it and ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

"""Images to a token store, once: the store of a config is opened, resumed or encoded.

`tokconv.encoding.shards` encodes in this process, `tokconv.encoding.pool` with several encoders.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from tokconv.config.tree import Config
from tokconv.encoding.changes import find_changes
from tokconv.encoding.existing import settle
from tokconv.encoding.images import assign_split
from tokconv.encoding.job import STORES, EncodeJob, open_job
from tokconv.encoding.recovery import add_readable, readable
from tokconv.encoding.shards import CountImages, ShardEncoder
from tokconv.encoding.stored_images import remember_config
from tokconv.errors import DataError
from tokconv.store.format import ShardHeader, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.remote_encode import amend_remote, encode_remote
from tokconv.store.writer import StoreWriter
from tokconv.system.devices import resolve_device

WriteShards = Callable[[EncodeJob, StoreWriter, Sequence[int], CountImages], None]
"""Writes the shards of these numbers, which are missing, at the place of a job."""


@dataclass(frozen=True)
class EncodeProgress:
    """How far an encode is; the images of shards that an earlier run wrote count as done."""

    done: int
    total: int
    skipped: int
    seconds: float


OnProgress = Callable[[EncodeProgress], None]
OnOpened = Callable[[EncodeJob], None]
"""Called with the job before anything is encoded."""


def encode(
    config: Config,
    *,
    device: str | None = None,
    progress: OnProgress | None = None,
    opened: OnOpened | None = None,
    stores: str | Path = STORES,
    retry_skipped: bool = True,
) -> TokenStore:
    """Return the token store of this config: open it if it exists, resume it if it is unfinished, else encode it.

    A store is that of a config only as long as its images have the same content. Images that could not be read are
    tried again; if some can be read now, they make a new version of the store, and the version before stays in it.

    Args:
        config: `model.clip` and `data` are read.
        device: where the tower runs; None takes CUDA if there is one.
        progress: called after every batch.
        opened: called once the images are found, before any is encoded.
        stores: the directory for the store if `data.store` does not name one.
        retry_skipped: whether to try images again that a complete store lacks.

    Raises:
        DataError: no encoder, no images, or fewer than two readable ones.
        ConfigError: a layer that the tower does not have, or a device that this machine does not have.
        StoreError: `data.store` holds a store of other settings or images, or a damaged one.
        StorageError: `data.store` is a URL whose server refuses or does not answer.

    Example:
        >>> store = encode(compose(["data.subset=64"]))      # doctest: +SKIP
    """
    job = open_job(config, stores)
    if opened is not None:
        opened(job)

    def write(job: EncodeJob, writer: StoreWriter, missing: Sequence[int], count: CountImages) -> None:
        ShardEncoder(config, job, resolve_device(device)).write(writer, missing, count)

    return encode_job(config, job, write, progress, retry_skipped=retry_skipped, device=device)


def encode_job(
    config: Config,
    job: EncodeJob,
    write: WriteShards,
    progress: OnProgress | None = None,
    *,
    retry_skipped: bool,
    device: str | None = None,
) -> TokenStore:
    """Return the store of a job: open it if it exists, else write its missing shards, then its index.

    Args:
        retry_skipped: as `encode`.
        device: where the tower runs for images that a complete store lacks.

    Raises as `encode`.
    """
    job, store = settle(job)
    if store is None and job.url is not None:
        store = encode_remote(job.url, job.settings, lambda: _encode_here(config, job, write, progress))
    elif store is None:
        store = _encode_here(config, job, write, progress)
    elif store.skipped and retry_skipped:
        store = amend_remote(store, lambda found: add_readable(config, job, found, device))
    remember_config(store, config)
    return store


def _encode_here(config: Config, job: EncodeJob, write: WriteShards, progress: OnProgress | None) -> TokenStore:
    store = TokenStore.find(job.path, job.settings)
    if store is not None:
        return store
    with StoreWriter(job.path, job.settings) as writer:
        if not writer.complete:
            start, settings, written = time.monotonic(), job.settings, _up_to_date(job, writer)
            done = sum(len(settings.shard_items(number)) for number in written)
            skipped = sum(len(header.skipped) for header in written.values())

            def count(images: int, newly_skipped: int) -> None:
                nonlocal done, skipped
                done, skipped = done + images, skipped + newly_skipped
                if progress is not None:
                    progress(EncodeProgress(done, settings.num_items, skipped, time.monotonic() - start))

            missing = [number for number in range(settings.num_shards) if number not in written]
            if missing:
                write(job, writer, missing, count)
            _finish(config, job, writer)
    return TokenStore.open(job.path)


def _up_to_date(job: EncodeJob, writer: StoreWriter) -> dict[int, ShardHeader]:
    """Return the headers of the shards that an earlier run wrote and whose images are the same now.

    The others are removed, as are those with images that can be read only now.
    """
    headers = writer.headers()
    skipped = {image.item for header in headers.values() for image in header.skipped}
    shards = {number: job.path / shard_name(number) for number in headers}
    stale = {item // job.settings.shard_size for item in readable(job, sorted(skipped))}
    while (changes := find_changes(job, {n: path for n, path in shards.items() if n not in stale}, skipped)).text:
        again = {item // job.settings.shard_size for item in changes.items} or set(headers)
        print(f"the data set changed while its encoding was interrupted: {changes.text}; shards again: {len(again)}")
        stale |= again
    for number in stale:
        shards[number].unlink()
    return {number: header for number, header in headers.items() if number not in stale}


def _finish(config: Config, job: EncodeJob, writer: StoreWriter) -> None:
    # The split is drawn over the readable images, so that unreadable ones cannot leave either side empty.
    stored = [job.source.items[item] for item in writer.stored_items()]
    if not stored:
        reason = writer.headers()[0].skipped[0].reason
        raise DataError(
            f"data: none of {job.settings.num_items} images could be read (the first: {reason}); "
            f"repair them, remove {job.path} and encode again"
        )
    writer.finish([item.key for item in stored], assign_split(stored, config.data.val_fraction))

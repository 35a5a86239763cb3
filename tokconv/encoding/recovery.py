"""Images that could not be read when a store was encoded, and can be read now: they make a new version of the store.

The tokens, the order and the split of the other images stay. What uses the version before, as a running sweep, keeps
it: its shards and its index stay where they are, and a new fingerprint tells the versions apart.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace

import torch
from torch import Tensor

from tokconv.config.tree import Config
from tokconv.encoding.images import own_split
from tokconv.encoding.job import EncodeJob
from tokconv.encoding.shards import ShardEncoder, digests, readers_explained
from tokconv.store.format import Skipped, map_shard, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.system.devices import resolve_device


def readable(job: EncodeJob, items: Sequence[int]) -> list[int]:
    """Return those of some source indices whose images can be read now."""
    found = []
    for item in items:
        with suppress(Exception):  # as in `shards.py`: a decoder can raise anything
            job.source.load(item)
            found.append(item)
    return found


def add_readable(config: Config, job: EncodeJob, store: TokenStore, device: str | None = None) -> TokenStore:
    """Return the store with the skipped images that can be read now; the store itself if there are none.

    Args:
        device: where the tower runs, if an image needs it.

    Raises as `encode`.
    """
    job = replace(job, path=store.path, url=None, settings=store.settings)
    items = readable(job, [image.item for image in store.skipped])
    if not items:
        return store
    with StoreWriter(store.path, store.settings) as writer:
        newest = TokenStore.open(store.path)
        if newest.fingerprint != store.fingerprint:
            return newest
        writer.names = {number: path.name for number, path in enumerate(store.shard_paths())}
        encoder = ShardEncoder(config, job, resolve_device(device))
        for number, own in itertools.groupby(items, key=lambda item: item // store.settings.shard_size):
            _add(encoder, writer, store, number, list(own))
        stored = [job.source.items[item] for item in writer.stored_items()]
        if len(stored) == store.num_images:
            return store
        val = set(store.val_indices.tolist())
        splits = {key: "val" if place in val else "train" for place, key in enumerate(store.keys)}
        writer.finish(
            [item.key for item in stored],
            [splits.get(item.key) or own_split(item, config.data.val_fraction) for item in stored],
            store.version + 1,
        )
    added = TokenStore.open(store.path)
    print(f"images that could be read now and were added to the store: {added.num_images - store.num_images}")
    return added


@readers_explained()
def _add(encoder: ShardEncoder, writer: StoreWriter, store: TokenStore, number: int, items: list[int]) -> None:
    """Write a shard of the next version: what it holds, and those of these items that can be encoded."""
    size, before = encoder.config.data.encode_batch_size, map_shard(store.shard_paths()[number])
    parts: list[dict[str, Tensor]] = []
    added: list[int] = []
    contents: list[bytes] = []
    for batch in encoder.read([items[start : start + size] for start in range(0, len(items), size)]):
        if batch.items:
            parts.append(pack(encoder.encode(batch.loaded), store.settings.dtype))
        added += batch.items
        contents += batch.contents
    if not added:
        return
    order = torch.tensor([*before["items"].tolist(), *added]).argsort()
    unknown = torch.zeros(len(before["items"]), digests([]).shape[1], dtype=torch.uint8)

    def merged(old: Tensor, new: Tensor) -> Tensor:
        return torch.cat([old, new])[order]

    packed = {name: merged(before[name], torch.cat([part[name] for part in parts])) for name in parts[0]}
    skipped = [image for image in store.skipped if image.item // store.settings.shard_size == number]
    labels = encoder.labels(added)
    writer.write_shard(
        number,
        packed,
        sorted([*before["items"].tolist(), *added]),
        None if labels is None else merged(before["labels"], torch.tensor(labels)).tolist(),
        [Skipped(image.item, image.reason) for image in skipped if image.item not in added],
        merged(before.get("contents", unknown), digests(contents)),
        store.version + 1,
    )

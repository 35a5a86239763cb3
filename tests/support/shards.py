"""A store of ten images, one of which could not be read, written shard by shard."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch

from tokconv.store.format import Skipped, StoreSettings, pack
from tokconv.store.writer import StoreWriter

N, C, ITEMS = 4, 8, 10
BAD = 4
TOKENS = torch.randn(ITEMS, N, C, generator=torch.Generator().manual_seed(0)) * 3 + 1
STORED = [item for item in range(ITEMS) if item != BAD]
SPLITS = ["val" if item % 3 == 0 else "train" for item in STORED]


def make_settings(dtype: str = "float16", **changes: object) -> StoreSettings:
    plain = StoreSettings(
        encoder={"name": "tower", "layer": 2},
        source={"name": "test"},
        num_items=ITEMS,
        token_grid=2,
        dim=C,
        dtype=dtype,
        class_names=("a", "b"),
        shard_size=3,
    )
    return dataclasses.replace(plain, **changes)  # type: ignore[arg-type]


def write(path: Path, dtype: str = "float16") -> list[int]:
    """Write the missing shards; return their numbers."""
    wanted = make_settings(dtype)
    with StoreWriter(path, wanted) as writer:
        missing = sorted(set(range(wanted.num_shards)) - set(writer.headers()))
        for number in missing:
            items = [item for item in wanted.shard_items(number) if item != BAD]
            skipped = [Skipped(BAD, "unreadable")] if BAD in wanted.shard_items(number) else []
            writer.write_shard(number, pack(TOKENS[items], dtype), items, [item % 2 for item in items], skipped)
        assert writer.stored_items() == STORED
        writer.finish([f"key-{item}" for item in STORED], SPLITS)
    return missing

"""The store: tokens survive a round trip, are read by index and in batches, by several processes."""

from __future__ import annotations

import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from support.shards import BAD, SPLITS, STORED, TOKENS, C, N, write

from tokconv.store.format import Skipped, StoreSettings, image_bytes
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter


@pytest.mark.parametrize(("dtype", "error"), [("float16", 0.01), ("bfloat16", 0.05), ("int8", 0.06)])
def test_round_trip(tmp_path: Path, dtype: str, error: float) -> None:
    write(tmp_path, dtype)
    store = TokenStore.open(tmp_path, verify=True)
    order = torch.tensor([8, 0, 3, 3, 2, 7, 1])
    tokens = store.tokens(order)
    assert tokens.dtype == torch.float32
    assert (tokens - TOKENS[STORED][order]).abs().max() < error
    assert store.num_images == len(STORED)
    assert store.keys[BAD] == f"key-{BAD + 1}"
    assert store.labels is not None
    assert store.labels.tolist() == [item % 2 for item in STORED]
    assert store.skipped == (Skipped(BAD, "unreadable"),)
    assert [SPLITS[index] for index in store.val_indices] == ["val"] * len(store.val_indices)
    assert sorted([*store.val_indices.tolist(), *store.train_indices.tolist()]) == list(range(len(STORED)))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_the_moments_are_those_of_the_stored_training_tokens(tmp_path: Path, dtype: str) -> None:
    write(tmp_path, dtype)
    store = TokenStore.open(tmp_path)
    train = store.tokens(store.train_indices).double().flatten(0, 1)
    torch.testing.assert_close(store.mean, train.mean(0).float())
    standard = (train - store.mean) / store.scale
    assert standard.var(0, correction=0).mean().item() == pytest.approx(1, abs=1e-5)


def test_indices_out_of_range(path: Path) -> None:
    store = TokenStore.open(path)
    for index in (-1, len(STORED)):
        with pytest.raises(IndexError):
            store.tokens(torch.tensor([index]))
    assert store.tokens(torch.tensor([], dtype=torch.int64)).shape == (0, N, C)


@pytest.mark.parametrize("ahead", [False, True])
def test_batches_are_the_tokens_asked_for(path: Path, ahead: bool) -> None:
    store = TokenStore.open(path)
    wanted = torch.arange(store.num_images - 1, -1, -1).split(3)
    for indices, tokens in zip(wanted, store.batches(wanted, ahead=ahead), strict=True):
        assert torch.equal(tokens, store.tokens(indices))
    assert list(store.batches([], ahead=ahead)) == []
    with pytest.raises(IndexError, match="of a store with"):
        list(store.batches([torch.tensor([0]), torch.tensor([99])], ahead=ahead))


def read_in_child(store: TokenStore, queue: multiprocessing.Queue[Any]) -> None:
    queue.put(store.tokens(torch.tensor([5, 1])).numpy())


def test_a_store_can_be_pickled_and_used_after_a_fork(path: Path) -> None:
    store = TokenStore.open(path)
    wanted = store.tokens(torch.tensor([5, 1]))
    again = pickle.loads(pickle.dumps(store))
    assert again.fingerprint == store.fingerprint
    assert torch.equal(again.tokens(torch.tensor([5, 1])), wanted)
    context = multiprocessing.get_context("fork")
    queue = context.Queue()
    child = context.Process(target=read_in_child, args=(store, queue))
    child.start()
    assert torch.equal(torch.from_numpy(queue.get(timeout=20)), wanted)
    child.join()


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_reading_a_few_images_does_not_load_the_shard(tmp_path: Path) -> None:
    large = StoreSettings(encoder={}, source={}, num_items=64, token_grid=16, dim=1024, shard_size=64)
    with StoreWriter(tmp_path, large) as writer:
        writer.write_shard(0, {"tokens": torch.zeros(64, 256, 1024, dtype=torch.float16)}, list(range(64)))
        writer.finish([str(item) for item in range(64)], ["train"] * 64)
    store = TokenStore.open(tmp_path)
    before = resident_bytes()
    store.tokens(torch.tensor([3, 40]))
    assert resident_bytes() - before < 16 * 2**20 < 64 * image_bytes(16, 1024, "float16")

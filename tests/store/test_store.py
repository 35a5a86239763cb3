"""The store: tokens survive a round trip, interrupted encodes resume to the same bits, damage is refused."""

from __future__ import annotations

import dataclasses
import json
import math
import multiprocessing
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokconv.errors import StoreError
from tokconv.store.format import (
    INDEX,
    MAX_SHARD_BYTES,
    Skipped,
    StoreSettings,
    default_shard_size,
    image_bytes,
    pack,
    shard_name,
    unpack,
)
from tokconv.store.reader import TokenStore
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


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"


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


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-4, 1e4), st.integers(1, 64))
def test_int8_keeps_directions(seed: int, size: float, dim: int) -> None:
    tokens = torch.randn(3, 5, dim, generator=torch.Generator().manual_seed(seed)) * size
    again, packed = torch.empty_like(tokens), pack(tokens, "int8")
    for row in range(3):
        unpack(packed, row, again[row])
    assert torch.nn.functional.cosine_similarity(tokens, again, dim=-1).min() > 0.999


def test_zero_tokens_survive_int8() -> None:
    out = torch.ones(2, 4)
    unpack(pack(torch.zeros(1, 2, 4), "int8"), 0, out)
    assert out.eq(0).all()


def test_tokens_that_do_not_fit_are_refused() -> None:
    with pytest.raises(StoreError, match=r"data\.dtype=bfloat16"):
        pack(torch.full((1, 1, 2), 1e5), "float16")


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_tokens_that_are_not_finite_are_refused_for_what_they_are(dtype: str, value: float) -> None:
    with pytest.raises(StoreError, match=r"not finite; use model\.clip\.precision=float32"):
        pack(torch.full((1, 1, 2), value), dtype)


@given(st.integers(1, 64), st.integers(1, 4096), st.sampled_from(["float16", "bfloat16", "int8"]))
def test_shards_are_bounded(grid: int, dim: int, dtype: str) -> None:
    size = default_shard_size(grid, dim, dtype)
    assert 1 <= size <= 256
    assert size == 1 or size * image_bytes(grid, dim, dtype) <= MAX_SHARD_BYTES


def test_an_image_of_the_large_tower_takes_its_published_size() -> None:
    assert image_bytes(24, 1024, "float16") == 1_179_648


@pytest.mark.parametrize("damage", ["delete", "truncate", "foreign", "garbage"])
def test_resume_gives_the_same_bits(path: Path, damage: str) -> None:
    index = (path / INDEX).read_bytes()
    (path / INDEX).unlink()
    shard = path / shard_name(1)
    if damage == "delete":
        shard.unlink()
    elif damage == "truncate":
        shard.write_bytes(shard.read_bytes()[:-3])
    elif damage == "foreign":
        shard.write_bytes((path / shard_name(2)).read_bytes())
    else:
        shard.write_bytes(b"\xff" * 100)
    (path / ".tokens-00001.safetensors.0.tmp").touch()
    with pytest.raises(StoreError, match="run tokconv encode again to resume"):
        TokenStore.open(path)
    assert write(path) == [1]
    assert (path / INDEX).read_bytes() == index
    assert not list(path.glob(".*.tmp"))


def test_other_settings_are_refused_by_name(path: Path) -> None:
    other = make_settings(encoder={"name": "tower", "layer": 3})
    for attempt in ("complete", "unfinished"):
        with pytest.raises(StoreError, match=r"encoder\.layer: stored 2, wanted 3.*choose another data\.store"):
            TokenStore.find(path, other)
        with pytest.raises(StoreError, match=r"encoder\.layer"), StoreWriter(path, other):
            pass
        if attempt == "complete":
            (path / INDEX).unlink()
    assert TokenStore.find(path, make_settings()) is None
    assert TokenStore.find(path / "none", make_settings()) is None


def test_directories_that_hold_other_files_are_not_touched(tmp_path: Path) -> None:
    (tmp_path / "holiday.jpg").touch()
    with pytest.raises(StoreError, match="holds other files"), StoreWriter(tmp_path, make_settings()):
        pass
    with pytest.raises(StoreError, match="cannot create"), StoreWriter(tmp_path / "holiday.jpg" / "x", make_settings()):
        pass


def test_missing_stores_and_unknown_format_versions_are_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="there is no token store"):
        TokenStore.open(tmp_path / "none")
    edit_index(path, format_version=99)
    with pytest.raises(StoreError, match="format version 99"):
        TokenStore.open(path)


def edit_index(path: Path, **changes: object) -> None:
    index = json.loads((path / INDEX).read_text())
    (path / INDEX).write_text(json.dumps({**index, **changes}))


@pytest.mark.parametrize("name", ["../tokens-00000.safetensors", "/etc/passwd", "tokens-00000.safetensors/../x", 7])
def test_shard_names_cannot_leave_the_store(path: Path, name: object) -> None:
    shards = json.loads((path / INDEX).read_text())["shards"]
    shards[0]["name"] = name
    edit_index(path, shards=shards)
    with pytest.raises(StoreError, match="not a shard's name"):
        TokenStore.open(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"settings": {**make_settings().to_json(), "dim": 10**12}},
        {"settings": {**make_settings().to_json(), "token_grid": "4"}},
        {"settings": {**make_settings().to_json(), "dtype": "float8"}},
        {"settings": {**make_settings().to_json(), "surprise": 1}},
        {"settings": None},
        {"mean": [0.0]},
        {"keys": []},
        {"val": [10**6]},
        {"shards": []},
    ],
)
def test_an_index_that_makes_no_sense_is_refused(path: Path, changes: dict[str, object]) -> None:
    edit_index(path, **changes)
    with pytest.raises(StoreError, match="damaged"):
        TokenStore.open(path)


def test_any_flipped_byte_is_found(path: Path) -> None:
    shard = path / shard_name(0)
    whole = shard.read_bytes()
    for position in range(0, len(whole), 61):
        shard.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        with pytest.raises(StoreError):
            TokenStore.open(path, verify=True)
    shard.write_bytes(whole)
    TokenStore.open(path, verify=True)


def test_a_truncated_shard_is_found_without_verify(path: Path) -> None:
    shard = path / shard_name(2)
    shard.write_bytes(shard.read_bytes()[:-1])
    with pytest.raises(StoreError, match=f"remove it and {INDEX}"):
        TokenStore.open(path)


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


def test_a_shard_must_account_for_all_its_images(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, make_settings()) as writer:
        with pytest.raises(StoreError, match="account for every one"):
            writer.write_shard(0, pack(TOKENS[:2], "float16"), [0, 1], [0, 1])
        with pytest.raises(StoreError, match="expected"):
            writer.write_shard(0, pack(TOKENS[:2], "float16"), [0, 1, 2], [0, 1, 0])
        assert writer.headers() == {}
        with pytest.raises(StoreError, match="missing"):
            writer.finish([], [])


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


def test_a_second_writer_waits_and_finds_it_complete(tmp_path: Path) -> None:
    seen: list[bool] = []

    def second() -> None:
        with StoreWriter(tmp_path, make_settings()) as writer:
            seen.append(writer.complete)

    with StoreWriter(tmp_path, make_settings()) as writer:
        thread = threading.Thread(target=second)
        thread.start()
        time.sleep(0.2)
        assert seen == []
        for number in range(writer.settings.num_shards):
            items = list(writer.settings.shard_items(number))
            writer.write_shard(number, pack(TOKENS[items], "float16"), items, [0 for _ in items])
        writer.finish([str(item) for item in range(ITEMS)], ["train"] * ITEMS)
    thread.join(timeout=10)
    assert seen == [True]


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

"""Writing a store: interrupted encodes resume to the same bits, and nothing is written where it does not belong."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from support.shards import ITEMS, TOKENS, make_settings, write

from tokconv.errors import StoreError
from tokconv.store.format import INDEX, pack, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter


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


def test_a_shard_must_account_for_all_its_images(tmp_path: Path) -> None:
    with StoreWriter(tmp_path, make_settings()) as writer:
        with pytest.raises(StoreError, match="account for every one"):
            writer.write_shard(0, pack(TOKENS[:2], "float16"), [0, 1], [0, 1])
        with pytest.raises(StoreError, match="expected"):
            writer.write_shard(0, pack(TOKENS[:2], "float16"), [0, 1, 2], [0, 1, 0])
        assert writer.headers() == {}
        with pytest.raises(StoreError, match="missing"):
            writer.finish([], [])


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

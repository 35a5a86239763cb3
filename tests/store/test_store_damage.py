"""A store that is missing, damaged or of another version is refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.shards import make_settings

from tokconv.errors import StoreError
from tokconv.store.format import INDEX, shard_name
from tokconv.store.reader import TokenStore


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

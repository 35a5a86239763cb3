"""Tokens of images with different grids, in one file."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import tokconv
from tokconv.errors import DataError
from tokconv.exports.dynamic.ragged import load_ragged, save_ragged


def test_a_ragged_file_gives_back_what_was_written(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = [torch.randn(k * k, 5, generator=generator) for k in (3, 1, 4, 3)]
    names = ["a.png", "dir/b c.png", "u\u00e9.png", "a.png"]
    read = tokconv.load_ragged(save_ragged(tmp_path / "sub" / "tokens.safetensors", parts, names))
    assert len(read) == 4
    assert read.images == tuple(names)
    assert read.grids.tolist() == [3, 1, 4, 3]
    assert read.offsets.tolist() == [0, 9, 10, 26, 35]
    assert all(torch.equal(part, again) for part, again in zip(parts, read, strict=True))
    assert torch.equal(read[-2], parts[2])
    for number in (4, -5):
        with pytest.raises(IndexError):
            read[number]


def test_what_is_no_ragged_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "tokens.safetensors"
    with pytest.raises(DataError, match="no such file"):
        load_ragged(path)
    for parts, names in ([], []), ([torch.zeros(4, 2)], []), ([torch.zeros(3, 2)], ["a"]):
        with pytest.raises(DataError, match=r"tokens\.safetensors"):
            save_ragged(path, parts, names)
    assert not list(tmp_path.iterdir())
    save_file({"tokens": torch.zeros(1, 4, 2)}, path)
    with pytest.raises(DataError, match="holds no tokens of mixed grids"):
        load_ragged(path)
    save_ragged(path, [torch.zeros(4, 2), torch.zeros(9, 2)], ["a", "b"])
    whole, good = path.read_bytes(), load_file(path)
    metadata = {"tokconv_ragged": "1", "images": '["a", "b"]'}
    path.write_bytes(whole[:-10])
    with pytest.raises(DataError, match="damaged"):
        load_ragged(path)
    wrong: tuple[tuple[dict[str, torch.Tensor], dict[str, str]], ...] = (
        ({"grids": torch.tensor([3, 2])}, {}),
        ({"grids": torch.tensor([-2, 3])}, {}),
        ({"offsets": torch.tensor([0, 4])}, {}),
        ({"tokens": torch.zeros(12, 2)}, {}),
        ({"tokens": torch.zeros(13)}, {}),
        ({}, {"images": '["a"]'}),
        ({}, {"images": "a, b"}),
    )
    for tensors, texts in wrong:
        save_file(good | tensors, path, metadata | texts)
        with pytest.raises(DataError, match="damaged"):
            load_ragged(path)

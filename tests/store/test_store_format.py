"""The format of a store: what int8 keeps, which tokens fit, how large a shard is."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tokconv.errors import StoreError
from tokconv.store.format import MAX_SHARD_BYTES, default_shard_size, image_bytes, pack, unpack


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

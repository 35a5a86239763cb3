"""Windows cover every token, tile if k divides G, and rearrange without loss."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tokconv.errors import ConfigError
from tokconv.models.windows import Windows, compression_ratio, side_length, to_grid, to_tokens, window_starts

GRIDS = st.integers(1, 26).flatmap(lambda g: st.tuples(st.just(g), st.integers(1, g)))


@given(GRIDS)
def test_windows_cover_every_row_and_stay_inside(grids: tuple[int, int]) -> None:
    token_grid, output_grid = grids
    starts, width = window_starts(token_grid, output_grid), -(-token_grid // output_grid)
    assert len(starts) == output_grid
    assert {row for start in starts for row in range(start, start + width)} == set(range(token_grid))


@given(GRIDS)
def test_join_undoes_split(grids: tuple[int, int]) -> None:
    windows = Windows(*grids)
    tokens = torch.randn(2, grids[0] ** 2, 3)
    assert torch.allclose(windows.join(windows.split(tokens)), tokens, atol=1e-6)


@pytest.mark.parametrize("output_grid", [4, 6, 8, 12])
def test_tiling_windows_agree_with_the_index_table(output_grid: int) -> None:
    windows = Windows(24, output_grid)
    tokens = torch.randn(2, 576, 3)
    by_table = tokens[:, windows.members].unflatten(1, (windows.num_cells, windows.window_size))
    assert torch.equal(windows.split(tokens), by_table)


def test_average_of_windows_is_average_pooling() -> None:
    tokens = torch.randn(2, 576, 5)
    pooled = torch.nn.functional.adaptive_avg_pool2d(to_grid(tokens).permute(0, 3, 1, 2), 6)
    assert torch.allclose(Windows(24, 6).split(tokens).mean(2), pooled.flatten(2).transpose(1, 2), atol=1e-6)


@given(GRIDS, st.integers(0, 2**31))
def test_sampled_tokens_lie_in_their_window(grids: tuple[int, int], seed: int) -> None:
    windows = Windows(*grids)
    places = torch.arange(grids[0] ** 2).view(1, -1, 1).expand(3, -1, -1)
    sampled = windows.sample(places, torch.Generator().manual_seed(seed))
    assert (windows.split(places)[..., 0] == sampled).any(2).all()


def test_workers_share_one_draw() -> None:
    windows, tokens = Windows(6, 3), torch.randn(4, 36, 2)
    whole = windows.sample(tokens, torch.Generator().manual_seed(7))
    half = windows.sample(tokens[2:], torch.Generator().manual_seed(7), first=2, total=4)
    assert torch.equal(whole[2:], half)


def test_sampling_is_uniform() -> None:
    windows = Windows(4, 2)
    places = torch.arange(16).view(1, 16, 1).expand(4000, -1, -1)
    counts = windows.sample(places, torch.Generator().manual_seed(0)).flatten().bincount(minlength=16)
    assert ((counts - 1000).abs() < 150).all()


@pytest.mark.parametrize("output_grid", [0, 25, -1])
def test_impossible_grids_are_refused(output_grid: int) -> None:
    with pytest.raises(ConfigError, match="between 1 and the token grid, 24"):
        Windows(24, output_grid)


def test_sequences_that_are_not_a_square_grid_are_refused() -> None:
    with pytest.raises(ConfigError, match="577"):
        side_length(577)


def test_grid_and_tokens_are_inverse_views() -> None:
    tokens = torch.randn(2, 9, 4)
    assert torch.equal(to_tokens(to_grid(tokens)), tokens)
    assert compression_ratio(24, 6) == 16

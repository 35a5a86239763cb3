"""Token sequences and grids, and the windows (receptive fields) of a k x k output grid.

Shape suffixes here and in the models: B images, N tokens (N = G*G, row by row), C channels, K cells (K = k*k),
W tokens of a window (W = w*w).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from tokconv.errors import ConfigError
from tokconv.system.devices import send


def side_length(num_tokens: int) -> int:
    """Return G of a square token grid. Raises ConfigError if the count is not a square."""
    side = math.isqrt(num_tokens)
    if side * side != num_tokens:
        raise ConfigError(f"{num_tokens} tokens are not a square grid; tokconv needs G x G patch tokens, without CLS")
    return side


def check_tokens(tokens: Tensor, token_grid: int, dim: int) -> None:
    """Raise ConfigError unless tokens are [B, G*G, C], with what to do about the likely mistakes."""
    count = token_grid**2
    if tokens.ndim == 3 and tokens.shape[1:] == (count, dim):
        return
    advice = "give tokens of the encoder that it was trained on"
    if tokens.ndim == 2:
        advice = "add the axis of images: tokens[None]"
    elif tokens.ndim == 3 and tokens.shape[2] == dim and count < tokens.shape[1] <= count + MOST_EXTRA_TOKENS:
        extra = tokens.shape[1] - count
        what = "the class token" if extra == 1 else f"{extra} class and register tokens"
        advice = f"leave out {what}, which most towers put first: tokens[:, {extra}:]"
    raise ConfigError(
        f"the compressor takes patch tokens [images, {count}, {dim}], got {list(map(int, tokens.shape))}; {advice}"
    )


def window_starts(token_grid: int, output_grid: int) -> list[int]:
    """Return the first row (or column) of each of the k windows of width ceil(G / k), spread evenly from edge to edge.

    If k divides G, the windows tile the grid. Otherwise neighbours overlap by a few rows: every token is covered, and
    one projection still serves all windows because all have the same size.
    """
    width = math.ceil(token_grid / output_grid)
    stride = (token_grid - width) / max(1, output_grid - 1)
    return [math.floor(i * stride + 0.5) for i in range(output_grid)]


def compression_ratio(token_grid: int, output_grid: int) -> float:
    """Return tokens in / tokens out: 16.0 for 24 x 24 to 6 x 6."""
    return token_grid**2 / output_grid**2


def check_output_grid(output_grid: int, token_grid: int, given: str = "model.compressor.output_grid_size") -> None:
    """Raise ConfigError unless k is in 1..G; `given` is the key or option that it comes from."""
    if not 1 <= output_grid <= token_grid:
        raise ConfigError(f"{given}: got {output_grid}; must be between 1 and the token grid, {token_grid}")


MOST_EXTRA_TOKENS = 16
"""Class and register tokens that a tower may put before its patches."""
DEFAULT_GRIDS = (4, 6, 8, 12)


def chosen_grids(text: str | None, token_grid: int) -> list[int]:
    """Return the output grids of `--grids 4,6,8,12`, ascending; for None those of the default grids that compress.

    Raises:
        ConfigError: the text is not side lengths with commas between, or one of them is not in 1..G.
    """
    if text is None:
        return [grid for grid in DEFAULT_GRIDS if grid < token_grid] or [max(1, token_grid // 2)]
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() and len(part) < 5 for part in parts):
        raise ConfigError(f"--grids: got {text!r}; write side lengths with commas between, as in 4,6,8,12")
    chosen = sorted({int(part) for part in parts})
    for grid in chosen:
        check_output_grid(grid, token_grid, "--grids")
    return chosen


def to_grid(tokens_BNC: Tensor) -> Tensor:
    """[B, N, C] -> [B, G, G, C], a view."""
    side = side_length(tokens_BNC.shape[1])
    return tokens_BNC.unflatten(1, (side, side))


def to_tokens(grid_BHWC: Tensor) -> Tensor:
    """[B, G, G, C] -> [B, N, C], a view."""
    return grid_BHWC.flatten(1, 2)


class Windows(nn.Module):
    """The windows of a k x k output grid over a G x G token grid.

    They have no weights and nothing that is saved. If k divides G, `split` and `join` are inverse rearrangements;
    otherwise `join` averages overlapping windows.

    Raises:
        ConfigError: k is not in 1..G.
    """

    members: Tensor
    slots: Tensor
    shares: Tensor

    def __init__(self, token_grid: int, output_grid: int) -> None:
        super().__init__()
        check_output_grid(output_grid, token_grid)
        self.token_grid, self.output_grid = token_grid, output_grid
        self.width = math.ceil(token_grid / output_grid)
        self.num_cells, self.window_size = output_grid**2, self.width**2
        self.tiles = token_grid % output_grid == 0
        starts = torch.tensor(window_starts(token_grid, output_grid))
        rows = starts[:, None] + torch.arange(self.width)
        members = rows[:, None, :, None] * token_grid + rows[None, :, None, :]
        slots, shares = self._invert(members.flatten())
        self.register_buffer("members", members.flatten(), persistent=False)
        self.register_buffer("slots", slots, persistent=False)
        self.register_buffer("shares", shares, persistent=False)

    def _invert(self, members: Tensor) -> tuple[Tensor, Tensor]:
        """Return the padded (cell, place) slots that hold each token, and each slot's share of the average."""
        order = torch.argsort(members, stable=True)
        counts = torch.bincount(members, minlength=self.token_grid**2)
        first = torch.cumsum(counts, 0) - counts
        place = torch.arange(int(counts.max()))
        used = place[None, :] < counts[:, None]
        slots = order[torch.where(used, first[:, None] + place, first[:, None])]
        return slots, used / counts[:, None]

    def split(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, K, W, C]: the tokens of each window, row by row."""
        batch, _, channels = tokens_BNC.shape
        if self.tiles:
            k, w = self.output_grid, self.width
            grid = tokens_BNC.reshape(batch, k, w, k, w, channels)
            return grid.transpose(2, 3).reshape(batch, k * k, w * w, channels)
        return tokens_BNC[:, self.members].unflatten(1, (self.num_cells, self.window_size))

    def join(self, windows_BKWC: Tensor) -> Tensor:
        """[B, K, W, C] -> [B, N, C]; overlapping windows are averaged."""
        batch, _, _, channels = windows_BKWC.shape
        if self.tiles:
            k, w = self.output_grid, self.width
            grid = windows_BKWC.reshape(batch, k, k, w, w, channels)
            return grid.transpose(2, 3).reshape(batch, self.token_grid**2, channels)
        gathered = windows_BKWC.flatten(1, 2)[:, self.slots]
        return (gathered * self.shares[..., None].to(gathered.dtype)).sum(2)

    def sample(
        self, tokens_BNC: Tensor, generator: torch.Generator, *, first: int = 0, total: int | None = None
    ) -> Tensor:
        """[B, N, C] -> [B, K, C]: one uniformly random token of each window.

        The choice is drawn on the CPU for a batch of `total` images, in which these start at index `first`, so that
        every worker of a group takes its share of the same draw.
        """
        batch = tokens_BNC.shape[0]
        shape = (total or batch, self.num_cells)
        return self.pick(tokens_BNC, torch.randint(self.window_size, shape, generator=generator)[first : first + batch])

    def pick(self, tokens_BNC: Tensor, places_BK: Tensor) -> Tensor:
        """[B, N, C] -> [B, K, C]: the token at one place of each window, 0 to W - 1, counted row by row; on the CPU."""
        cells = torch.arange(self.num_cells) * self.window_size
        index = self.members[send(cells + places_BK, self.members.device)]
        return tokens_BNC.gather(1, index[..., None].expand(-1, -1, tokens_BNC.shape[2]))

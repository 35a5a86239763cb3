"""One compressor and one decoder for several grids at once.

Sources: Kusupati et al. 2022, arXiv:2205.13147; for visual tokens Cai et al. 2024, arXiv:2405.17430. Training draws one
grid per batch; `select` chooses the grid that is used.

The grids share a nonlinear trunk, which works on the finest of them. Each grid has its own window projection, so that
it starts at its closed form, and one layer that folds the finest grid into its cells.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from tokconv.models.blocks import ConvBlock, channel_map, zeroed
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.network import FirstLayer, WindowNetwork, WindowProjection, check_served
from tokconv.models.windows import Windows, to_grid, to_tokens


class ManyGrids(WindowNetwork):
    """Several grids in one network: their windows, their projections, and the choice between them."""

    projections: nn.ModuleDict
    all_windows: Mapping[str, Windows]
    """The windows of every grid over the token grid, by `str(grid)`."""
    folds: Mapping[str, Windows]
    """The same over the finest grid."""

    def __init__(self, token_grid: int, dim: int, output_grid_size: int, *, grids: Sequence[int]) -> None:
        check_served(grids, output_grid_size)
        super().__init__(token_grid, dim, output_grid_size)
        self.grids = tuple(grids)
        self.finest = Windows(token_grid, max(grids))
        self.all_windows = _windows(token_grid, grids)
        self.folds = _windows(max(grids), grids)

    def select(self, output_grid_size: int) -> None:
        super().select(output_grid_size)
        key = str(output_grid_size)
        self.windows = self.all_windows[key]
        # Not registered as a module of its own: `projections` holds it, and a state dict must not hold it twice.
        self.__dict__["projection"] = self.projections[key]
        self.output_grid_size = output_grid_size


def _windows(token_grid: int, grids: Sequence[int]) -> Mapping[str, Windows]:
    """Return the windows of every grid, by `str(grid)`; they follow the network to its device."""
    windows = nn.ModuleDict({str(grid): Windows(token_grid, grid) for grid in grids})
    return cast(Mapping[str, Windows], windows)


class MatryoshkaCompressor(ManyGrids, Compressor):
    """Window projection of the selected grid + shared trunk on the finest grid, folded, which starts at zero.

    Args: as `tokconv.models.compressor.ResidualCompressor`, and
        output_grid_size: the grid that is selected first.
        grids: every grid that it serves, ascending.

    Raises:
        ConfigError: output_grid_size is not one of the grids.

    Example:
        >>> compressor = MatryoshkaCompressor(24, 64, 6, grids=(4, 6, 12))
        >>> compressor.select(4)
        >>> compressor(torch.zeros(2, 576, 64)).shape
        torch.Size([2, 16, 64])
    """

    decoder_kind = "matryoshka"

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        grids: Sequence[int],
        num_layers: int = 3,
        hidden_dim: int = 128,
        norm: str = "layer",
        padding: str = "zeros",
        whiten: bool = False,
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size, grids=grids)
        self.colour = channel_map(dim, whiten)
        self.projections = nn.ModuleDict(
            {key: WindowProjection(own.window_size * dim, dim) for key, own in self.all_windows.items()}
        )
        self.enter = FirstLayer(self.finest.window_size * dim, hidden_dim)
        self.position = nn.Parameter(torch.zeros(self.finest.num_cells, hidden_dim))
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim, norm=norm, padding=padding) for _ in range(num_layers)))
        self.fold = nn.ModuleDict(
            {key: nn.Linear(own.window_size * hidden_dim, hidden_dim) for key, own in self.folds.items()}
        )
        self.last = ConvBlock(hidden_dim, norm=norm, padding=padding)
        self.leave = zeroed(nn.Linear(hidden_dim, dim))
        self.select(output_grid_size)

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        key = str(self.output_grid_size)
        hidden = self.enter(self.finest.split(standardised_BNC).flatten(2)) + self.position
        hidden = to_tokens(self.blocks(to_grid(hidden)))
        cells = self.fold[key](self.folds[key].split(hidden).flatten(2))
        mixed = to_tokens(self.last(to_grid(cells)))
        return self.projections[key](self.windows.split(standardised_BNC).flatten(2)) + self.colour(self.leave(mixed))


class MatryoshkaDecoder(ManyGrids, Decoder):
    """The mirror of `MatryoshkaCompressor`: transposed projection of the selected grid + shared trunk.

    Args: as `MatryoshkaCompressor`.
    """

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        grids: Sequence[int],
        num_layers: int = 2,
        hidden_dim: int = 128,
        norm: str = "layer",
        padding: str = "zeros",
        whiten: bool = False,
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size, grids=grids)
        self.whiten = channel_map(dim, whiten)
        self.projections = nn.ModuleDict(
            {key: WindowProjection(dim, own.window_size * dim) for key, own in self.all_windows.items()}
        )
        self.enter = FirstLayer(dim, hidden_dim)
        self.first = ConvBlock(hidden_dim, norm=norm, padding=padding)
        self.unfolds = nn.ModuleDict(
            {key: nn.Linear(hidden_dim, own.window_size * hidden_dim) for key, own in self.folds.items()}
        )
        self.position = nn.Parameter(torch.zeros(self.finest.num_cells, hidden_dim))
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim, norm=norm, padding=padding) for _ in range(num_layers)))
        self.leave = zeroed(nn.Linear(hidden_dim, self.finest.window_size * dim))
        self.select(output_grid_size)

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        key = str(self.output_grid_size)
        folds = self.folds[key]
        hidden = to_tokens(self.first(to_grid(self.enter(self.whiten(standardised_BKC)))))
        hidden = folds.join(self.unfolds[key](hidden).unflatten(2, (folds.window_size, -1))) + self.position
        hidden = to_tokens(self.blocks(to_grid(hidden)))
        fine = self.finest.join(self.leave(hidden).unflatten(2, (self.finest.window_size, -1)))
        return self.unfold(self.projections[key](standardised_BKC)) + fine

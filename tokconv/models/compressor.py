"""Compressors: G x G tokens in, k x k tokens out, in the same units and width."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from tokconv.models.blocks import ConvBlock, channel_map, zeroed
from tokconv.models.network import FirstLayer, WindowNetwork, WindowProjection
from tokconv.models.windows import check_tokens, to_grid, to_tokens


class Compressor(WindowNetwork):
    """The base of every compressor; `tokconv.models.registry` builds one by its kind.

    Args: as `tokconv.models.network.WindowNetwork`; the input is [B, G*G, dim].
    """

    decoder_kind: str | None = None
    """The kind of decoder that serves its grids; None if any kind of `model.autoencoder.kind` does."""
    description: Mapping[str, Any] | None = None
    """config.json of the export that it was loaded from; None if it was not loaded from one."""

    @property
    def num_output_tokens(self) -> int:
        return self.windows.num_cells

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, K, C], both in token units. Raises ConfigError for tokens of another shape."""
        # Windows that do not tile the grid would take any number of tokens, and compress the wrong ones.
        check_tokens(tokens_BNC, self.token_grid, self.dim)
        return self.standardise.restore(self.compress(self.standardise(tokens_BNC)))

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, K, C], both standardised."""
        raise NotImplementedError


class ResidualCompressor(Compressor):
    """Window projection (one strided convolution) + residual branch that starts at zero.

    Both read the w x w window of each output cell; the branch then mixes neighbouring cells. Training starts exactly at
    the closed-form linear compressor that fills `projection`.

    Args: as `Compressor`, and
        num_layers: blocks of the branch.
        hidden_dim: width of the branch.
        use_residual: false leaves the window projection alone, a linear compressor.
        norm, padding: of the blocks, see `ConvBlock`.
        whiten: the branch writes in whitened coordinates: directions of little variance count as much as others in its
            last layer, where they would otherwise be a small part of every update.

    Example:
        >>> ResidualCompressor(token_grid=24, dim=64, output_grid_size=6)(torch.zeros(2, 576, 64)).shape
        torch.Size([2, 36, 64])
    """

    projection: WindowProjection

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        num_layers: int = 3,
        hidden_dim: int = 128,
        use_residual: bool = True,
        norm: str = "layer",
        padding: str = "zeros",
        whiten: bool = False,
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        window_dim = self.windows.window_size * dim
        self.colour = channel_map(dim, whiten and use_residual)
        self.projection = WindowProjection(window_dim, dim)
        self.branch: Branch | None = None
        if use_residual:
            cells = self.windows.num_cells
            self.branch = Branch(window_dim, hidden_dim, dim, cells, num_layers, norm=norm, padding=padding)

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        windows = self.windows.split(standardised_BNC).flatten(2)
        cells = self.projection(windows)
        return cells if self.branch is None else cells + self.colour(self.branch(windows))


class Branch(nn.Module):
    """A network from cells to cells: hidden, blocks over the k x k grid, and a last layer that starts at zero.

    Args:
        in_dim, hidden_dim, out_dim: channels of a cell before, inside and after.
        num_cells: K.
        num_layers: blocks.
        norm, padding: of the blocks, see `ConvBlock`.
    """

    def __init__(
        self, in_dim: int, hidden_dim: int, out_dim: int, num_cells: int, num_layers: int, *, norm: str, padding: str
    ) -> None:
        super().__init__()
        self.enter = FirstLayer(in_dim, hidden_dim)
        self.position = nn.Parameter(torch.zeros(num_cells, hidden_dim))
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim, norm=norm, padding=padding) for _ in range(num_layers)))
        self.leave = zeroed(nn.Linear(hidden_dim, out_dim))

    def forward(self, cells_BKC: Tensor) -> Tensor:
        hidden = self.enter(cells_BKC) + self.position
        return self.leave(to_tokens(self.blocks(to_grid(hidden))))

"""The progressive compressor: strided convolutions shrink the grid step by step, as in the published design."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor, nn

from tokconv.models.blocks import ConvBlock, channel_map, zeroed
from tokconv.models.compressor import Compressor
from tokconv.models.network import FirstLayer, WindowProjection
from tokconv.models.windows import Windows, to_grid, to_tokens


def stage_sizes(token_grid: int, output_grid: int, num_layers: int) -> list[int]:
    """Return the side lengths from G to k over `num_layers` stages, in equal ratios: [24, 15, 10, 6] for 24 to 6 in 3.

    The last one is exactly k, whether or not k divides G.
    """
    ratio = output_grid / token_grid
    sizes = [round(token_grid * ratio ** (stage / num_layers)) for stage in range(num_layers)]
    return [*sizes, output_grid]


class ConvCompressor(Compressor):
    """Progressive strided convolutions; each stage is a block at its resolution and a strided projection to the next.

    A stage from side s to side t is one strided convolution with windows of ceil(s / t), spread evenly, so the output
    has exactly t x t tokens for any s and t. A fixed kernel, stride and padding cannot do that: published versions fail
    with `output_padding` errors and lost border tokens.

    Args: as `Compressor`, and
        num_layers: stages.
        hidden_dim: width of the stages.
        use_residual: true adds the window projection from G to k as a skip around all stages, which then start at
            zero: training starts at the closed form. false keeps the stages alone, randomly initialised: the
            published design, for comparison.
        norm, padding: of the blocks, see `ConvBlock`.
        whiten: the last stage writes in whitened coordinates, see `ResidualCompressor`.

    Example:
        >>> ConvCompressor(token_grid=24, dim=64, output_grid_size=7)(torch.zeros(2, 576, 64)).shape
        torch.Size([2, 49, 64])
    """

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
        self.colour = channel_map(dim, whiten)
        sizes = stage_sizes(token_grid, output_grid_size, max(1, num_layers))
        self.enter = FirstLayer(dim, hidden_dim)
        self.position = nn.Parameter(torch.zeros(token_grid**2, hidden_dim))
        self.stages = nn.ModuleList(
            Stage(hidden_dim, before, after, norm=norm, padding=padding) for before, after in itertools.pairwise(sizes)
        )
        leave = nn.Linear(hidden_dim, dim)
        self.leave = zeroed(leave) if use_residual else leave
        self.projection = WindowProjection(self.windows.window_size * dim, dim) if use_residual else None

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        hidden = self.enter(standardised_BNC) + self.position
        for stage in self.stages:
            hidden = stage(hidden)
        cells = self.colour(self.leave(hidden))
        if self.projection is None:
            return cells
        return cells + self.projection(self.windows.split(standardised_BNC).flatten(2))


class Stage(nn.Module):
    """A block over the s x s grid, then one strided convolution to the t x t grid.

    Args:
        dim: channels in and out.
        before, after: s and t.
    """

    def __init__(self, dim: int, before: int, after: int, *, norm: str, padding: str) -> None:
        super().__init__()
        self.block = ConvBlock(dim, norm=norm, padding=padding)
        self.windows = Windows(before, after)
        self.shrink = nn.Linear(self.windows.window_size * dim, dim)
        # It starts as the average of its window plus a small random weight per tap.
        with torch.no_grad():
            size = self.windows.window_size
            self.shrink.weight.mul_(0.1).add_(torch.eye(dim).repeat(1, size) / size)

    def forward(self, hidden_BNC: Tensor) -> Tensor:
        mixed = to_tokens(self.block(to_grid(hidden_BNC)))
        return self.shrink(self.windows.split(mixed).flatten(2))

"""What a compressor and a decoder have in common: the grids they serve, the windows, and the window projection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from tokconv.errors import ConfigError
from tokconv.models.blocks import Standardise
from tokconv.models.windows import Windows

CLOSED_FORM_INPUTS = 30
"""A layer that starts at a closed form learns at this over its inputs, as a share of the learning rate, or slower."""
FIRST_LAYER_INPUTS = 1024
"""With more inputs than this, the first layer of a branch learns more slowly than the others."""


class Scaled(nn.Module):
    """A module whose parameters learn at shares of the learning rate that follow from its inputs.

    A step of Adam moves every weight of a layer by about the learning rate, and its output by the sum over its inputs.
    At a rate that does not fall with their number, wide tokens are thrown from the start that narrow ones keep; a rate
    of 1 / inputs suits all widths (Yang et al. 2022, arXiv:2203.03466, table 3).
    """

    def learning_shares(self) -> Iterator[tuple[Tensor, float]]:
        """Yield its own parameters that have a share, and the share; the others learn at the full rate."""
        raise NotImplementedError


class ClosedForm(Scaled):
    """A module whose weights can start at a closed-form optimum. It then trains slowly (measured, docs/results.md)."""

    closed_form = False
    """Whether `fill` has set it to that optimum."""
    learning_share: float
    """Its largest share of the learning rate after `fill`."""

    def inputs(self) -> Iterator[tuple[nn.Parameter, int]]:
        """Yield its parameters, each with the number of inputs that are summed where it counts."""
        raise NotImplementedError

    def learning_shares(self) -> Iterator[tuple[Tensor, float]]:
        if self.closed_form:
            for parameter, count in self.inputs():
                yield parameter, min(self.learning_share, CLOSED_FORM_INPUTS / count)


class FirstLayer(Scaled, nn.Linear):
    """The layer by which tokens or their windows enter a branch."""

    def learning_shares(self) -> Iterator[tuple[Tensor, float]]:
        yield self.weight, min(1.0, FIRST_LAYER_INPUTS / self.in_features)


class WindowProjection(ClosedForm, nn.Linear):
    """The affine map from a window to its cell, or from a cell to its window."""

    learning_share = 0.03

    def inputs(self) -> Iterator[tuple[nn.Parameter, int]]:
        return ((parameter, self.in_features) for parameter in self.parameters())

    @torch.no_grad()
    def fill(self, weight: Tensor, bias: Tensor) -> None:
        """Set it to a closed-form optimum: weight [out, in], bias [out]."""
        self.weight.copy_(weight)
        self.bias.copy_(bias)
        self.closed_form = True


class WindowNetwork(nn.Module):
    """The base of compressors and decoders.

    Most kinds serve one output grid. A kind that serves several overrides `grids` and `select`.

    Args:
        token_grid: G; sequences of G*G patch tokens, without CLS.
        dim: C, channels in and out.
        output_grid_size: k, from 1 to G; it need not divide G (`tokconv.models.windows.Windows`).
    """

    grids: tuple[int, ...]
    """Every k that it serves, ascending."""
    output_grid_size: int
    """The k that is in use."""
    windows: Windows
    """The windows of that grid."""
    projection: WindowProjection | None
    """The window projection of that grid; None for a kind without one."""
    standardise: Standardise
    """The scale of the tokens: mean 0 and scale 1, until a store's replaces it or a state dict is loaded."""

    def __init__(self, token_grid: int, dim: int, output_grid_size: int) -> None:
        super().__init__()
        self.windows = Windows(token_grid, output_grid_size)
        self.token_grid, self.dim, self.output_grid_size = token_grid, dim, output_grid_size
        self.grids = (output_grid_size,)
        self.standardise = Standardise(dim)

    def select(self, output_grid_size: int) -> None:
        """Use this grid from now on. Raises ConfigError if it is not one of `grids`."""
        check_served(self.grids, output_grid_size)


def check_served(grids: Sequence[int], output_grid_size: int) -> None:
    """Raise ConfigError unless the grid is one of these."""
    if output_grid_size not in grids:
        raise ConfigError(
            f"model.compressor.output_grid_size: got {output_grid_size}; this network serves the grids "
            f"{', '.join(map(str, grids))}"
        )

"""The pieces that networks share: the scale of the tokens, and a cheap convolutional block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Standardise(nn.Module):
    """The map between tokens in their own units and tokens with mean 0 and unit average variance.

    All channels share one scale, so that distances keep their proportions: (tokens - mean) / scale.

    Args:
        dim: C.
        mean: [C], per-channel mean of the store's training split; None is zero.
        scale: square root of the average channel variance.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, dim: int, mean: Tensor | None = None, scale: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(dim) if mean is None else mean.detach().clone().float())
        self.register_buffer("scale", torch.tensor(float(scale)))

    def forward(self, tokens: Tensor) -> Tensor:
        return (tokens - self.mean) / self.scale

    def restore(self, standardised: Tensor) -> Tensor:
        return standardised * self.scale + self.mean


class DepthwiseConv(nn.Conv2d):
    """A depthwise 3x3 convolution that keeps the grid's size.

    Args:
        dim: channels in and out, [B, dim, H, W].
        padding: zeros, or partial, which multiplies the sum over the k existing tokens at a border by 9 / k, so that
            missing tokens do not shrink it (Liu et al. 2018, arXiv:1811.11718, eq. 2).
    """

    def __init__(self, dim: int, padding: str = "zeros") -> None:
        super().__init__(dim, dim, 3, padding=1, groups=dim)
        self.partial = padding == "partial"

    def forward(self, grid_BCHW: Tensor) -> Tensor:
        if not self.partial:
            return super().forward(grid_BCHW)
        there = grid_BCHW.new_ones(1, 1, *grid_BCHW.shape[2:])
        count = F.conv2d(there, there.new_ones(1, 1, 3, 3), padding=1)
        summed = F.conv2d(grid_BCHW, self.weight, padding=1, groups=self.groups)
        assert self.bias is not None
        return summed * (9 / count) + self.bias.view(1, -1, 1, 1)


class ConvBlock(nn.Module):
    """Depthwise 3x3, norm, and a two-layer MLP per token, with a skip (Liu et al. 2022, arXiv:2201.03545, fig. 4).

    A dense 3x3 costs 9 C^2 per token; this costs 9 C + 4 C^2. The norm is per token, never across tokens or images, as
    WGAN-GP requires of a critic.

    Args:
        dim: channels in and out, [B, H, W, dim].
        norm: layer or none.
        padding: see `DepthwiseConv`.
    """

    def __init__(self, dim: int, *, norm: str = "layer", padding: str = "zeros") -> None:
        super().__init__()
        self.depthwise = DepthwiseConv(dim, padding)
        self.norm: nn.Module = make_norm(norm, dim)
        self.widen = nn.Linear(dim, 2 * dim)
        self.narrow = nn.Linear(2 * dim, dim)

    def forward(self, grid_BHWC: Tensor) -> Tensor:
        mixed = self.depthwise(grid_BHWC.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        return grid_BHWC + self.narrow(F.gelu(self.widen(self.norm(mixed))))


class ChannelMap(nn.Module):
    """A fixed linear map of channels, tokens @ matrix: it is not trained, and is saved with the weights.

    Args:
        dim: C; the matrix [C, C] is the identity until it is filled or a state dict is loaded.
    """

    matrix: Tensor

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.register_buffer("matrix", torch.eye(dim))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens @ self.matrix


def channel_map(dim: int, wanted: bool) -> nn.Module:
    """Return a `ChannelMap`, or the identity, which leaves nothing in a state dict."""
    return ChannelMap(dim) if wanted else nn.Identity()


def make_norm(norm: str, dim: int) -> nn.Module:
    """Return, for layer, a LayerNorm over the channels of a token; for none, the identity."""
    return nn.LayerNorm(dim) if norm == "layer" else nn.Identity()


def zeroed(layer: nn.Linear) -> nn.Linear:
    """Set weights and bias of a branch's last layer to zero, so that the branch adds nothing at first; return it."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer

"""The salient compressor: each cell is a weighted mean of its window's tokens, and what stands out weighs more.

Averaging hides a token that is unlike the others, a defect or a small object; selecting one token per window drops the
rest. Weights between the two keep both readable, and a cell stays inside the convex hull of real tokens, whatever
training does to the weights.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tokconv.models.compressor import Branch, Compressor
from tokconv.models.windows import Windows

SHARPNESS = 8.0
"""The power of a token's distance that its weight starts at. 0 is pooling; from about 100 on, selection."""


def salience(standardised_BNC: Tensor) -> Tensor:
    """Return the logarithm of each token's distance from the mean token of its image, [B, N]."""
    deviation = standardised_BNC - standardised_BNC.mean(1, keepdim=True)
    # Equal tokens all weigh the same, and have a gradient.
    return 0.5 * (deviation.square().sum(-1) + 1e-6).log()


def weighted_means(standardised_BNC: Tensor, logits_BN: Tensor, windows: Windows) -> Tensor:
    """Return the mean of each window, weighted by the softmax of its tokens' logits: [B, K, C]."""
    weights = windows.split(logits_BN[..., None]).softmax(2)
    return (windows.split(standardised_BNC) * weights).sum(2)


def salient_pooling(standardised_BNC: Tensor, windows: Windows) -> Tensor:
    """Return the means that `SalientCompressor` starts at, [B, K, C]."""
    return weighted_means(standardised_BNC, SHARPNESS * salience(standardised_BNC), windows)


class SalientCompressor(Compressor):
    """Weighted means of windows: the log weight of a token is sharpness * salience + a learned score, up to a constant.

    Args: as `Compressor`, and
        num_layers, hidden_dim: blocks and width of the branch that scores tokens; its score starts at zero.
        use_residual: false leaves the branch out; the sharpness is then all that is learned.
        norm, padding: of the blocks, see `tokconv.models.blocks.ConvBlock`.

    Example:
        >>> SalientCompressor(token_grid=24, dim=64, output_grid_size=6)(torch.zeros(2, 576, 64)).shape
        torch.Size([2, 36, 64])
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
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        self.projection = None
        self.sharpness = nn.Parameter(torch.tensor(SHARPNESS))
        self.branch: Branch | None = None
        if use_residual:
            self.branch = Branch(dim, hidden_dim, 1, token_grid**2, num_layers, norm=norm, padding=padding)

    def compress(self, standardised_BNC: Tensor) -> Tensor:
        logits = self.sharpness * salience(standardised_BNC)
        if self.branch is not None:
            logits = logits + self.branch(standardised_BNC).squeeze(-1)
        return weighted_means(standardised_BNC, logits, self.windows)

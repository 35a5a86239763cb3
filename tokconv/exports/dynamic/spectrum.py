"""The features of an image in dynamic compression: the energy of its tokens per spatial band and principal component.

Shapes: B images, N = G * G tokens, C channels, F features (bands x groups).
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokconv.models.windows import to_grid

MAX_GROUPS = 64
"""Up to this many channels, each principal component is a group; wider tokens have this many groups of components."""
COARSEST = 3
"""The pyramid ends at a grid of this side length; everything that varies more slowly is one band."""


class Spectrum(nn.Module):
    """Mean energies per (band, group): [B, N, C] -> [B, F] float32, in units of the tokens' average variance.

    The bands are those of a pyramid of 2 x 2 averages (Burt and Adelson 1983, "The Laplacian pyramid as a compact image
    code", with a box filter): what is lost from G to G/2, from there to G/4 and so on; then what is left around the
    image's mean token; then that token. A compressor loses mostly the fine bands and the weak components, so the error
    of a linear one is nearly linear in these energies. The cost is one C x C product per token: 1.2 GFLOP for 576
    tokens of 1024 channels, 0.3 % of ViT-L/14-336.

    Args:
        mean: [C], of the training split.
        axes: [C, C], maps standardised tokens to principal components, strongest first.
        scale: the divisor of standardised tokens.
    """

    mean: Tensor
    axes: Tensor
    scale: Tensor

    def __init__(self, mean: Tensor, axes: Tensor, scale: Tensor) -> None:
        super().__init__()
        for name, value in (("mean", mean), ("axes", axes), ("scale", scale)):
            self.register_buffer(name, value.float().clone())

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        rotated = ((tokens_BNC.float() - self.mean) / self.scale) @ self.axes
        level = to_grid(rotated).permute(0, 3, 1, 2)
        bands = []
        while level.shape[-1] > COARSEST:
            coarser = F.avg_pool2d(level, 2, ceil_mode=True, count_include_pad=False)
            side = level.shape[-1]
            shown = coarser.repeat_interleave(2, 2).repeat_interleave(2, 3)[..., :side, :side]
            bands.append((level - shown).square().mean((2, 3)))
            level = coarser
        average = level.mean((2, 3), keepdim=True)
        bands += [(level - average).square().mean((2, 3)), average[..., 0, 0].square()]
        groups = min(self.mean.numel(), MAX_GROUPS)
        energies = [group.sum(1) for band in bands for group in band.tensor_split(groups, dim=1)]
        return torch.stack(energies, dim=1)


def principal_axes(standardised: Iterable[Tensor]) -> Tensor:
    """Return [C, C] float32, the principal components of batches [b, N, C] of standardised tokens, strongest first."""
    total, count = torch.zeros((), dtype=torch.float64), 0
    for tokens in standardised:
        flat = tokens.flatten(0, 1)
        total = total + (flat.T @ flat).double()
        count += len(flat)
    vectors: Tensor = torch.linalg.eigh(total / count).eigenvectors
    return vectors.flip(1).float().contiguous()

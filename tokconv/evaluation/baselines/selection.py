"""Compressors of a grid that are not affine maps of windows: selecting one token of each window, and resampling.

They map standardised tokens [B, N, C] to cells [B, K, C]; their decoder is the least-squares map from a cell to its
window.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.models.windows import Windows, to_grid, to_tokens

RANDOM_SEED = 18_000_000
"""Added to the index of an image, so that `random_token` draws what no other seed of tokconv draws."""


def furthest_token(standardised_BNC: Tensor, windows: Windows) -> Tensor:
    """Return the token of greatest norm in each window; of ties, the first one.

    The norm of a standardised token is its distance from the mean token. In token units, the mean that all tokens share
    would decide.
    """
    members = windows.split(standardised_BNC)
    chosen = members.square().sum(-1).argmax(2)
    return members.gather(2, chosen[..., None, None].expand(-1, -1, 1, members.shape[3])).squeeze(2)


def resized(standardised_BNC: Tensor, windows: Windows) -> Tensor:
    """Interpolate the grid bilinearly at the centres of the k x k cells (`align_corners=False`).

    Each cell is a weighted mean of the at most four tokens around its centre; other tokens have no influence.
    """
    grid_BCHW = to_grid(standardised_BNC).permute(0, 3, 1, 2)
    small = F.interpolate(grid_BCHW, size=windows.output_grid, mode="bilinear", align_corners=False)
    return to_tokens(small.permute(0, 2, 3, 1))


def central_token(standardised_BNC: Tensor, windows: Windows) -> Tensor:
    """Return the token at the centre of each window, so that the tokens are at equal distances.

    If the width is even, the centre lies between four tokens; the lower right one of them is taken.
    """
    place = windows.width // 2 * (windows.width + 1)
    return windows.pick(standardised_BNC, torch.full((len(standardised_BNC), windows.num_cells), place))


def random_token(standardised_BNC: Tensor, windows: Windows, images_B: Tensor) -> Tensor:
    """Return one random token of each window, always the same for an image [B] of the store.

    Random selection is often drawn over the whole image. Here it is one token per window, so that the tokens form a
    grid, and the decoder needs no map of where they were.
    """
    shape, places = (windows.num_cells,), []
    for image in images_B.tolist():
        generator = torch.Generator().manual_seed(RANDOM_SEED + image)
        places.append(torch.randint(windows.window_size, shape, generator=generator))
    return windows.pick(standardised_BNC, torch.stack(places))

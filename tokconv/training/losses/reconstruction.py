"""What is kept of the tokens: losses between reconstructed and real tokens [B, N, C], and between compressed tokens and
the windows they stand for, all on standardised tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch.nn.functional as F
from torch import Tensor

from tokconv.models.windows import Windows, to_grid

RELATED_TOKENS = 144
"""Tokens between which relations are compared; all 576 would cost 16 times as much."""


def reconstruction_loss(kind: str, reconstructed: Tensor, target: Tensor) -> Tensor:
    """mse, cosine (1 - mean cosine per token), or hybrid (their sum), on tokens [B, N, C] with the mean removed.

    The mean is removed because CLIP tokens share a large one: with it, two unrelated tokens already have a high
    cosine, and the loss would be flat where it matters.
    """
    reconstructed, target = reconstructed.float(), target.float()
    if kind == "mse":
        return F.mse_loss(reconstructed, target)
    cosine = 1 - F.cosine_similarity(reconstructed, target, dim=-1).mean()
    return cosine if kind == "cosine" else F.mse_loss(reconstructed, target) + cosine


def spatial_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Spatial consistency: squared error of the differences between neighbouring tokens, [B, N, C].

    An error that all neighbours share costs nothing here; one that breaks an edge or makes one costs most (gradient
    difference loss, Mathieu et al. 2016, arXiv:1511.05440, eq. 6, with the square of this one's differences).
    """
    error = to_grid(reconstructed.float() - target.float())
    down, right = error.diff(dim=1), error.diff(dim=2)
    return (down.square().mean() + right.square().mean()) / 2


def perceptual_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Squared error of the cosine similarities between the tokens of an image: structure as a vision transformer sees
    it (self-similarity of its features, Tumanyan et al. 2022, arXiv:2201.00424, eq. 3), with no second network.

    Args:
        reconstructed, target: [B, N, C]; every fourth token is compared with the others when there are more than 144.
    """
    stride = max(1, reconstructed.shape[1] // RELATED_TOKENS)
    mine, theirs = (F.normalize(t.float()[:, ::stride], dim=-1) for t in (reconstructed, target))
    return (mine @ mine.transpose(1, 2) - theirs @ theirs.transpose(1, 2)).square().mean()


def window_cosine_loss(compressed: Tensor, target: Tensor, windows: Windows) -> Tensor:
    """1 - mean cosine between a compressed token and every token of its window.

    Its optimum is the normalised mean of the window's unit tokens, that is average pooling up to lengths: a compressor
    that minimises it has learned nothing. Kept for comparison with published results, never as evidence.

    Args:
        compressed: [B, K, C]; target: [B, N, C].
    """
    members = windows.split(target.float())
    return 1 - F.cosine_similarity(compressed.float()[:, :, None], members, dim=-1).mean()


def anchor_loss(compressed: Tensor, target: Tensor, windows: Windows) -> Tensor:
    """Squared distance between a compressed token and its window's mean token: keeps it saying what its place says, so
    that a reader trained on tokens understands it. Shapes as in `window_cosine_loss`."""
    return F.mse_loss(compressed.float(), windows.split(target.float()).mean(2))


def auxiliary_losses(
    weights: Mapping[str, float], compressed: Tensor, reconstructed: Tensor, target: Tensor, windows: Windows
) -> dict[str, Tensor]:
    """The losses among spatial, perceptual, window_cosine and anchor whose weight is not 0, unweighted."""
    losses: dict[str, Callable[[], Tensor]] = {
        "spatial": lambda: spatial_loss(reconstructed, target),
        "perceptual": lambda: perceptual_loss(reconstructed, target),
        "window_cosine": lambda: window_cosine_loss(compressed, target, windows),
        "anchor": lambda: anchor_loss(compressed, target, windows),
    }
    return {name: loss() for name, loss in losses.items() if weights[name] > 0}

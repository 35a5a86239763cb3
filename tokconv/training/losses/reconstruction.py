"""Losses between reconstructed and real tokens [B, N, C], and between compressed tokens and their windows, all on
standardised tokens.
"""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from tokconv.models.windows import Windows, to_grid
from tokconv.system.registry import Registry

RELATED_TOKENS = 144
"""The tokens of an image whose similarities are compared; all 576 would cost 16 times as much."""


def cosine_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Return 1 - the mean cosine per token, of tokens [B, N, C]."""
    return 1 - F.cosine_similarity(reconstructed, target, dim=-1).mean()


def hybrid_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Return the squared error plus `cosine_loss`."""
    # The cosine first: the order in which autograd sums their gradients is part of a run's figures.
    cosine = cosine_loss(reconstructed, target)
    return F.mse_loss(reconstructed, target) + cosine


RECONSTRUCTIONS: Registry[Callable[[Tensor, Tensor], Tensor]] = Registry(
    "loss.reconstruction", {"mse": F.mse_loss, "cosine": cosine_loss, "hybrid": hybrid_loss}
)


def reconstruction_loss(kind: str, reconstructed: Tensor, target: Tensor) -> Tensor:
    """Return the loss of a kind in `RECONSTRUCTIONS` on standardised tokens [B, N, C], in float32.

    Standardised tokens have no mean. CLIP tokens share a large one: with it, two unrelated tokens already have a high
    cosine, and the loss would be flat where it matters.

    Raises:
        ConfigError: there is no such kind.
    """
    return RECONSTRUCTIONS[kind](reconstructed.float(), target.float())


def spatial_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the differences between neighbouring tokens, of tokens [B, N, C].

    An error that all neighbours share costs nothing; one that breaks or invents an edge costs most. It is the gradient
    difference loss of Mathieu et al. 2016, arXiv:1511.05440, eq. 6, with squared differences.
    """
    error = to_grid(reconstructed.float() - target.float())
    down, right = error.diff(dim=1), error.diff(dim=2)
    return (down.square().mean() + right.square().mean()) / 2


def perceptual_loss(reconstructed: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the cosine similarities between the tokens of an image.

    They are the structure that a vision transformer sees (self-similarity of its features, Tumanyan et al. 2022,
    arXiv:2201.00424, eq. 3), without a second network.

    Args:
        reconstructed, target: [B, N, C]; of 576 tokens every fourth is compared with the others, see `RELATED_TOKENS`.
    """
    stride = max(1, reconstructed.shape[1] // RELATED_TOKENS)
    mine, theirs = (F.normalize(t.float()[:, ::stride], dim=-1) for t in (reconstructed, target))
    return (mine @ mine.transpose(1, 2) - theirs @ theirs.transpose(1, 2)).square().mean()


def window_cosine_loss(compressed: Tensor, target: Tensor, windows: Windows) -> Tensor:
    """Return 1 - the mean cosine between a compressed token and every token of its window.

    Its optimum is the normalised mean of the window's unit tokens, which is average pooling up to lengths: a compressor
    that minimises it has learned nothing. It serves comparison with published results, never as evidence.

    Args:
        compressed: [B, K, C]; target: [B, N, C].
    """
    members = windows.split(target.float())
    return 1 - F.cosine_similarity(compressed.float()[:, :, None], members, dim=-1).mean()


def anchor_loss(compressed: Tensor, target: Tensor, windows: Windows) -> Tensor:
    """Return the squared distance between a compressed token and its window's mean token.

    It keeps a compressed token close to the content of its place, so that a reader trained on tokens understands it.
    Shapes as in `window_cosine_loss`.
    """
    return F.mse_loss(compressed.float(), windows.split(target.float()).mean(2))

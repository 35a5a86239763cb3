"""The weighted losses of one generator update."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from tokconv.config.tree import LossConfig
from tokconv.models.windows import Windows
from tokconv.training.losses.distribution import distribution_loss
from tokconv.training.losses.reconstruction import (
    anchor_loss,
    perceptual_loss,
    reconstruction_loss,
    spatial_loss,
    window_cosine_loss,
)
from tokconv.training.workers import Workers


@dataclass(frozen=True)
class LossTerm:
    """One term of the loss of compressor and decoder."""

    name: str
    """`train/NAME` is its figure."""
    weight: float
    function: Callable[[], Tensor]
    """Computes it, a scalar without its weight."""


def loss_terms(
    loss: LossConfig,
    compressed: Tensor,
    reconstructed: Tensor,
    target: Tensor,
    *,
    windows: Windows,
    generator: torch.Generator,
    workers: Workers,
) -> list[LossTerm]:
    """Return the terms whose weight is not 0, and the reconstruction, in the order in which they are computed.

    The adversarial loss is none of them: its weight may depend on their gradient (`tokconv.training.adversary`).

    Args:
        compressed: [b, K, C]; reconstructed, target: [b, N, C]; all standardised.
        windows: of the grid in use.
        generator: the distribution loss draws from it.
    """
    weights = loss.weights
    terms = [
        LossTerm(
            "reconstruction", weights.ae, partial(reconstruction_loss, loss.reconstruction, reconstructed, target)
        ),
        LossTerm("spatial", weights.spatial, partial(spatial_loss, reconstructed, target)),
        LossTerm("perceptual", weights.perceptual, partial(perceptual_loss, reconstructed, target)),
        LossTerm("window_cosine", weights.window_cosine, partial(window_cosine_loss, compressed, target, windows)),
        LossTerm("anchor", weights.anchor, partial(anchor_loss, compressed, target, windows)),
        LossTerm(
            "distribution",
            weights.distribution,
            partial(distribution_loss, loss.distribution, compressed, target, generator, workers),
        ),
    ]
    return [term for term in terms if term.weight > 0 or term.name == "reconstruction"]

"""Critic-free distances between compressed and real tokens as losses: they make compressed tokens resemble real ones
without a second network to train. Both compare single tokens, as the protocol's sliced Wasserstein figure does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.errors import import_extra
from tokconv.system.devices import send
from tokconv.system.registry import Registry
from tokconv.training.workers import SINGLE_PROCESS, Workers

NUM_PROJECTIONS = 128
"""They are drawn anew for every step: training never sees the protocol's own directions."""
SINKHORN_TOKENS = 256
"""The cost of a step grows with its square: 0.04 s at 256, 0.5 s at 1,024 on one CPU core (C = 64)."""
SINKHORN_SCALING = 0.5


def sliced_wasserstein_loss(fake: Tensor, real: Tensor, generator: torch.Generator) -> Tensor:
    """Return the squared sliced Wasserstein-2 distance between samples of equal size.

    Sources: Bonneel et al. 2015, section 2.3; as a generator's loss Deshpande et al. 2018, arXiv:1803.11188.

    Args:
        fake, real: [n, C] float32.
        generator: on the CPU; draws the directions.
    """
    directions = send(torch.randn(fake.shape[1], NUM_PROJECTIONS, generator=generator), fake.device)
    directions = F.normalize(directions, dim=0)
    along_fake, along_real = ((sample @ directions).sort(dim=0).values for sample in (fake, real))
    return (along_fake - along_real).square().mean()


def sinkhorn_loss(fake: Tensor, real: Tensor, *, scaling: float = SINKHORN_SCALING) -> Tensor:
    """Return the debiased Sinkhorn divergence with cost |x - y|^2 / 2, computed by geomloss.

    Source: Feydy et al. 2019, arXiv:1810.08278, eq. 3. The blur is a tenth of the tokens' root mean square norm, which
    is sqrt(C) for standardised tokens.

    Args:
        fake, real: [n, C] float32; the first 256 rows of each are compared.
        scaling: how finely the blur is annealed, below 1; closer to 1 is more exact and slower.

    Returns:
        A scalar, divided by C so that it does not grow with the width.

    Raises:
        MissingExtraError: geomloss is not installed.
    """
    dim = fake.shape[1]
    samples_loss = import_extra("geomloss", "sinkhorn").SamplesLoss
    distance = samples_loss("sinkhorn", p=2, blur=0.1 * dim**0.5, scaling=scaling, backend="tensorized")
    return distance(fake[:SINKHORN_TOKENS], real[:SINKHORN_TOKENS]) / dim


@dataclass(frozen=True)
class Distance:
    """One kind of distance between samples of tokens."""

    between: Callable[[Tensor, Tensor, torch.Generator], Tensor]
    """(fake [n, C], real [n, C], generator on the CPU) -> a scalar."""
    max_tokens: int | None = None
    """The largest n; None for all compressed tokens."""


DISTANCES: Registry[Distance] = Registry(
    "loss.distribution",
    {
        "swd": Distance(sliced_wasserstein_loss),
        "sinkhorn": Distance(lambda fake, real, generator: sinkhorn_loss(fake, real), SINKHORN_TOKENS),
    },
)


def distribution_loss(
    kind: str, compressed: Tensor, tokens: Tensor, generator: torch.Generator, workers: Workers = SINGLE_PROCESS
) -> Tensor:
    """Return the distance between all compressed tokens and as many real ones, a scalar.

    A distance between samples is not a mean over images, so every worker computes that of the whole batch: it gathers
    the compressed tokens of all workers, and the real tokens that are drawn.

    Args:
        kind: a name in `DISTANCES`.
        compressed: [b, K, C]; tokens: [b, N, C]; both standardised, this worker's part of the batch.
        generator: on the CPU, in the same state on every worker.

    Raises:
        ConfigError: there is no such kind.
    """
    distance = DISTANCES[kind]
    fake = workers.gather(compressed.float()).flatten(0, 1)
    if distance.max_tokens is not None and len(fake) > distance.max_tokens:
        fake = fake[torch.randperm(len(fake), generator=generator)[: distance.max_tokens].to(fake.device)]
    # From anywhere in the images of all workers, with replacement.
    flat = tokens.float().flatten(0, 1)
    real = workers.rows(flat, torch.randint(workers.count * len(flat), (len(fake),), generator=generator))
    return distance.between(fake, real, generator)

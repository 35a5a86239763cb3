"""WGAN-GP and reconstruction losses, on standardised tokens [B, K, C] or [B, N, C].

WGAN: Arjovsky et al. 2017 (arXiv:1701.07875). Gradient penalty: Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3:

    L(critic) = E[critic(fake)] - E[critic(real)] + lambda_gp * E[(|grad_x critic(x)| - 1)^2],
    x = e * real + (1 - e) * fake,  e ~ U(0, 1) per sample
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CriticTerms:
    """What one critic update minimises, and its parts (scalars)."""

    loss: Tensor
    wasserstein: Tensor
    """E[critic(real)] - E[critic(fake)]: a diagnostic; its ruler changes with lambda_gp and n_critic."""
    gradient_penalty: Tensor


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Two-sided penalty E[(|grad| - 1)^2], the norm over all tokens and channels of a sample.

    Always float32 and outside autocast: a half-precision norm near 1 loses the very difference that is penalised.

    Args:
        critic: [B, K, C] -> [B].
        real, fake: [B, K, C].
        mix: [B], the e of eq. 3, uniform in [0, 1).

    Returns:
        A scalar whose graph reaches the critic's weights (double backward).
    """
    with torch.autocast(real.device.type, enabled=False):
        e = mix.view(-1, 1, 1).to(real.device, torch.float32)
        point = (e * real.detach().float() + (1 - e) * fake.detach().float()).requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
        return (gradient.flatten(1).norm(dim=1) - 1).square().mean()


def critic_loss(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, lambda_gp: float) -> CriticTerms:
    """The critic's loss; nothing flows back into `real` or `fake`. Shapes as in `gradient_penalty`."""
    scores = critic(torch.cat([real, fake]).detach())
    wasserstein = scores[: len(real)].mean() - scores[len(real) :].mean()
    penalty = gradient_penalty(critic, real, fake, mix) if lambda_gp > 0 else scores.new_zeros(())
    return CriticTerms(lambda_gp * penalty - wasserstein, wasserstein.detach(), penalty.detach())


def adversarial_loss(critic: Critic, fake: Tensor) -> Tensor:
    """-E[critic(fake)], what the compressor minimises."""
    return -critic(fake).mean()


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

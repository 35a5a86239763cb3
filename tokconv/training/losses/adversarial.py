"""Adversarial losses on standardised tokens [B, K, C]: what a critic learns, and what the compressor learns from it.

WGAN: Arjovsky et al. 2017 (arXiv:1701.07875); its penalties: Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3:

    L(critic) = E[critic(fake)] - E[critic(real)] + lambda_gp * E[(|grad_x critic(x)| - 1)^2],
    x = e * real + (1 - e) * fake,  e ~ U(0, 1) per sample

R3GAN: Huang et al. 2025 (arXiv:2501.05441), eq. 2 and 4, a relativistic pairing with zero-centred penalties:

    L(critic) = E[softplus(-(critic(real) - critic(fake)))]
                + lambda_gp / 2 * (E[|grad critic(real)|^2] + E[|grad critic(fake)|^2])
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.system.devices import send

Critic = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CriticTerms:
    """What one critic update minimises, and its parts (scalars)."""

    loss: Tensor
    wasserstein: Tensor
    """E[critic(real)] - E[critic(fake)]: a diagnostic; its ruler changes with lambda_gp and n_critic."""
    gradient_penalty: Tensor


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, *, one_sided: bool = False) -> Tensor:
    """Penalty E[(|grad| - 1)^2] between real and fake, the norm over all tokens and channels of a sample.

    Always float32 and outside autocast: a half-precision norm near 1 loses the very difference that is penalised.

    Args:
        critic: [B, K, C] -> [B].
        real, fake: [B, K, C].
        mix: [B], the e of eq. 3, uniform in [0, 1).
        one_sided: only norms above 1 cost (Gulrajani et al. 2017, section 4; Petzka et al. 2018, arXiv:1709.08894).

    Returns:
        A scalar whose graph reaches the critic's weights (double backward).
    """
    e = send(mix.float().view(-1, 1, 1), real.device)
    norm = _input_gradient(critic, e * real.detach().float() + (1 - e) * fake.detach().float()).norm(dim=1)
    excess = norm - 1
    return (excess.clamp_min(0) if one_sided else excess).square().mean()


def zero_centered_penalty(critic: Critic, sample: Tensor) -> Tensor:
    """E[|grad critic(sample)|^2]: R1 on real tokens, R2 on compressed ones (Mescheder et al. 2018, arXiv:1801.04406,
    eq. 9). Shapes and precision as in `gradient_penalty`."""
    return _input_gradient(critic, sample.detach().float()).square().sum(1).mean()


def _input_gradient(critic: Critic, point: Tensor) -> Tensor:
    """[B, K*C] float32, with a graph."""
    with torch.autocast(point.device.type, enabled=False):
        point = point.requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
        return gradient.flatten(1)


def critic_loss(
    critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, lambda_gp: float, kind: str = "wgan_gp"
) -> CriticTerms:
    """The critic's loss: wgan_gp, wgan_gp_one_sided, wgan_sn or r3gan; nothing flows back into `real` or `fake`.

    wgan_sn has no penalty: its critic is spectrally normed instead (`tokconv.models.critic.with_spectral_norm`).
    Shapes as in `gradient_penalty`.
    """
    scores = critic(torch.cat([real, fake]).detach())
    on_real, on_fake = scores[: len(real)].float(), scores[len(real) :].float()
    wasserstein = on_real.mean() - on_fake.mean()
    penalty = on_real.new_zeros(())
    if kind == "r3gan":
        if lambda_gp > 0:
            penalty = (zero_centered_penalty(critic, real) + zero_centered_penalty(critic, fake)) / 2
        loss = F.softplus(on_fake - on_real).mean() + lambda_gp * penalty
    else:
        if lambda_gp > 0 and kind != "wgan_sn":
            penalty = gradient_penalty(critic, real, fake, mix, one_sided=kind == "wgan_gp_one_sided")
        loss = lambda_gp * penalty - wasserstein
    return CriticTerms(loss, wasserstein.detach(), penalty.detach())


def adversarial_loss(critic: Critic, fake: Tensor, real: Tensor, kind: str = "wgan_gp") -> Tensor:
    """What the compressor minimises: -E[critic(fake)], or for r3gan E[softplus(-(critic(fake) - critic(real)))]."""
    if kind == "r3gan":
        with torch.no_grad():
            on_real = critic(real)
        return F.softplus(on_real - critic(fake)).mean()
    return -critic(fake).mean()

"""Adversarial losses on samples of standardised tokens: what the critic minimises, and what the compressor minimises.

A sample is what a critic scores (`tokconv.models.critic`): an image's k x k tokens, or one token. Here [n, K, C] is n
samples, with K = 1 for single tokens.

WGAN: Arjovsky et al. 2017 (arXiv:1701.07875); its penalties: Gulrajani et al. 2017 (arXiv:1704.00028), eq. 3:

    L(critic) = E[critic(fake)] - E[critic(real)] + lambda_gp * E[(|grad_x critic(x)| - 1)^2],
    x = e * real + (1 - e) * fake,  e ~ U(0, 1) per sample

R3GAN: Huang et al. 2025 (arXiv:2501.05441), eq. 2 and 4, a relativistic pairing with zero-centred penalties:

    L(critic) = E[softplus(-(critic(real) - critic(fake)))]
                + lambda_gp / 2 * (E[|grad critic(real)|^2] + E[|grad critic(fake)|^2])

Logistic, non-saturating: Goodfellow et al. 2014 (arXiv:1406.2661), eq. 1 and section 3, with the zero-centred penalties
R1 and R2 of Mescheder et al. 2018 (arXiv:1801.04406), eq. 9 and 10:

    L(critic) = E[softplus(-critic(real))] + E[softplus(critic(fake))]
                + lambda_gp / 2 * (E[|grad critic(real)|^2] + E[|grad critic(fake)|^2])
    L(compressor) = E[softplus(-critic(fake))]

Hinge: Lim and Ye 2017 (arXiv:1705.02894), eq. 4, with the spectral norm of Miyato et al. 2018 (arXiv:1802.05957),
eq. 16 and 17, instead of a penalty:

    L(critic) = E[relu(1 - critic(real))] + E[relu(1 + critic(fake))]
    L(compressor) = -E[critic(fake)]
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.system.devices import send
from tokconv.system.registry import Registry

Critic = Callable[[Tensor], Tensor]


class CriticTerms(NamedTuple):
    """The loss of one critic update, and its parts (scalars)."""

    loss: Tensor
    wasserstein: Tensor
    """E[critic(real)] - E[critic(fake)]: a diagnostic, whose scale depends on lambda_gp and n_critic."""
    gradient_penalty: Tensor


def gradient_penalty(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor, *, one_sided: bool = False) -> Tensor:
    """Return E[(|grad| - 1)^2] between real and fake; the norm is over all that a sample has.

    It is float32 and outside autocast: a half-precision norm near 1 loses the very difference that is penalised.

    Args:
        critic: [n, K, C] -> [n].
        real, fake: [n, K, C].
        mix: [n], the e of eq. 3, uniform in [0, 1).
        one_sided: penalise only norms above 1 (Gulrajani et al. 2017, section 4; Petzka et al. 2018, arXiv:1709.08894).

    Returns:
        A scalar whose graph reaches the critic's weights (double backward).
    """
    e = send(mix.float().view(-1, 1, 1), real.device)
    norm = _input_gradient(critic, e * real.detach().float() + (1 - e) * fake.detach().float()).norm(dim=1)
    excess = norm - 1
    return (excess.clamp_min(0) if one_sided else excess).square().mean()


def zero_centered_penalty(critic: Critic, sample: Tensor) -> Tensor:
    """Return E[|grad critic(sample)|^2]: R1 on real tokens, R2 on compressed ones.

    Source: Mescheder et al. 2018, arXiv:1801.04406, eq. 9. Shapes and precision are those of `gradient_penalty`.
    """
    return _input_gradient(critic, sample.detach().float()).square().sum(1).mean()


def _input_gradient(critic: Critic, point: Tensor) -> Tensor:
    """Return the gradient of the scores at a point, [n, K*C] float32, with a graph."""
    with torch.autocast(point.device.type, enabled=False):
        point = point.requires_grad_()
        (gradient,) = torch.autograd.grad(critic(point).sum(), point, create_graph=True)
        return gradient.flatten(1)


def zero_centered_penalties(critic: Critic, real: Tensor, fake: Tensor, mix: Tensor) -> Tensor:
    """Return the mean of R1 and R2, so that lambda_gp times it is the penalty of R3GAN's eq. 4."""
    return (zero_centered_penalty(critic, real) + zero_centered_penalty(critic, fake)) / 2


def _relativistic_critic_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    # With several real samples for a compressed one, it is compared with each of them.
    return F.softplus(on_fake.repeat(len(on_real) // len(on_fake)) - on_real).mean()


def _logistic_critic_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    return F.softplus(on_fake).mean() + F.softplus(-on_real).mean()


def _hinge_critic_loss(on_real: Tensor, on_fake: Tensor) -> Tensor:
    return F.relu(1 - on_real).mean() + F.relu(1 + on_fake).mean()


def _relativistic_compressor_loss(critic: Critic, fake: Tensor, real: Tensor) -> Tensor:
    with torch.no_grad():
        on_real = critic(real)
    return F.softplus(on_real - critic(fake)).mean()


@dataclass(frozen=True)
class Adversary:
    """One kind of adversarial training: what the critic and what the compressor minimise."""

    penalty: Callable[[Critic, Tensor, Tensor, Tensor], Tensor] | None
    """(critic, real, fake, mix) -> the penalty that `loss.wgan.lambda_gp` weights."""
    spectral_norm: bool = False
    """Whether the critic is spectrally normed (`tokconv.models.critic.with_spectral_norm`) instead of penalised."""
    critic_loss: Callable[[Tensor, Tensor], Tensor] = lambda on_real, on_fake: on_fake.mean() - on_real.mean()
    """(scores of real samples [m * n], of compressed ones [n]) -> what the critic minimises besides the penalty."""
    compressor_loss: Callable[[Critic, Tensor, Tensor], Tensor] = lambda critic, fake, real: -critic(fake).mean()
    """(critic, fake, real) -> what the compressor minimises."""


ADVERSARIES: Registry[Adversary] = Registry(
    "loss.wgan.kind",
    {
        "wgan_gp": Adversary(gradient_penalty),
        "wgan_gp_one_sided": Adversary(partial(gradient_penalty, one_sided=True)),
        "wgan_sn": Adversary(None, spectral_norm=True),
        "r3gan": Adversary(
            zero_centered_penalties,
            critic_loss=_relativistic_critic_loss,
            compressor_loss=_relativistic_compressor_loss,
        ),
        "logistic": Adversary(
            zero_centered_penalties,
            critic_loss=_logistic_critic_loss,
            compressor_loss=lambda critic, fake, real: F.softplus(-critic(fake)).mean(),
        ),
        "hinge": Adversary(None, spectral_norm=True, critic_loss=_hinge_critic_loss),
    },
)


def critic_loss(
    critic: Critic,
    real: Tensor,
    fake: Tensor,
    mix: Tensor,
    lambda_gp: float,
    kind: str = "wgan_gp",
    penalised: tuple[Tensor, Tensor] | None = None,
) -> CriticTerms:
    """Return the critic's loss and its parts; no gradient reaches `real` or `fake`.

    Args:
        critic, fake: as in `gradient_penalty`.
        real: [m * n, K, C], several real samples for every compressed one.
        mix: one number for every pair that is penalised.
        lambda_gp: weight of the penalty.
        kind: a name in `ADVERSARIES`.
        penalised: the real and compressed samples that the penalty is measured on; None for all.

    Raises:
        ConfigError: there is no such kind.
    """
    adversary = ADVERSARIES[kind]
    scores = critic(torch.cat([real, fake]).detach())
    on_real, on_fake = scores[: len(real)].float(), scores[len(real) :].float()
    wasserstein = on_real.mean() - on_fake.mean()
    loss = adversary.critic_loss(on_real, on_fake)
    penalty = loss.new_zeros(())
    if lambda_gp > 0 and adversary.penalty is not None:
        penalty = adversary.penalty(critic, *(penalised or (real, fake)), mix)
        loss = loss + lambda_gp * penalty
    return CriticTerms(loss, wasserstein.detach(), penalty.detach())


def adversarial_loss(critic: Critic, fake: Tensor, real: Tensor, kind: str = "wgan_gp") -> Tensor:
    """Return what the compressor minimises, a scalar.

    It is -E[critic(fake)], for logistic E[softplus(-critic(fake))], or for r3gan E[softplus(-(critic(fake) -
    critic(real)))]. Raises ConfigError for an unknown kind.
    """
    return ADVERSARIES[kind].compressor_loss(critic, fake, real)

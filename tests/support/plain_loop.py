"""A plainly written training step: tokconv's step must equal it, and the benchmarks compare the two.

Each kind of waste can be switched off alone, so that its cost can be measured. None changes the result.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Draw = Callable[[], tuple[Tensor, Tensor]]
"""Real tokens [B, K, C] and the mixes [B] of one critic update."""


@dataclass(frozen=True)
class Waste:
    """The unnecessary work of a plain loop."""

    compress_again: bool = True
    """The compressor runs again, and keeps its graph, in every critic update."""
    decode_again: bool = True
    """So does the decoder, as in one model with one forward pass."""
    separate_scores: bool = True
    """Real and compressed tokens go through the critic one after the other."""
    critic_gradients: bool = True
    """The generator's backward pass also computes the gradients of all the critic's weights."""


@dataclass
class Networks:
    """The networks of a trial: compress [B, N, C] -> [B, K, C], decode back, critic [B, K, C] -> [B]; standardised."""

    compress: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    critic: nn.Module
    generator_parameters: list[nn.Parameter]
    generator_optimizer: torch.optim.Optimizer
    critic_optimizer: torch.optim.Optimizer


def plain_step(
    networks: Networks,
    tokens_BNC: Tensor,
    draw: Draw,
    *,
    n_critic: int,
    lambda_gp: float,
    ae: float = 1.0,
    wgan: float = 1.0,
    balanced: bool = False,
    grad_clip: float | None = None,
    waste: Waste = Waste(),
) -> dict[str, float]:
    """Take one WGAN-GP step, critic updates first (Gulrajani et al. 2017, algorithm 1), and return its losses.

    Balanced, the weight of the adversarial loss is relative to the reconstruction, by two more backward passes.
    """
    if not (waste.compress_again and waste.decode_again):
        compressed = networks.compress(tokens_BNC)
        reconstructed = networks.decode(compressed)
    for _ in range(n_critic):
        if waste.compress_again:
            compressed = networks.compress(tokens_BNC)
        if waste.decode_again:
            reconstructed = networks.decode(compressed)
        real, mix = draw()
        fake = compressed.detach()
        if waste.separate_scores:
            on_real, on_fake = networks.critic(real), networks.critic(fake)
        else:
            on_real, on_fake = networks.critic(torch.cat([real, fake])).chunk(2)
        between = (mix.view(-1, 1, 1) * real + (1 - mix.view(-1, 1, 1)) * fake).requires_grad_()
        (slope,) = torch.autograd.grad(networks.critic(between).sum(), between, create_graph=True)
        penalty = (slope.flatten(1).norm(dim=1) - 1).square().mean()
        networks.critic_optimizer.zero_grad()
        (on_fake.mean() - on_real.mean() + lambda_gp * penalty).backward()
        networks.critic_optimizer.step()
    if waste.compress_again:
        compressed = networks.compress(tokens_BNC)
    if waste.decode_again:
        reconstructed = networks.decode(compressed)
    draw()
    networks.critic.requires_grad_(waste.critic_gradients)
    reconstruction, adversarial = F.mse_loss(reconstructed, tokens_BNC), -networks.critic(compressed).mean()
    if balanced:
        slopes = [torch.autograd.grad(loss, compressed, retain_graph=True)[0] for loss in (reconstruction, adversarial)]
        wgan *= float(ae * slopes[0].norm() / slopes[1].norm())
    networks.generator_optimizer.zero_grad()
    (ae * reconstruction + wgan * adversarial).backward()
    networks.critic.requires_grad_(True)
    if grad_clip is not None:
        nn.utils.clip_grad_norm_(networks.generator_parameters, grad_clip)
    networks.generator_optimizer.step()
    losses = {
        "train/reconstruction": reconstruction,
        "train/adversarial": adversarial,
        "critic/wasserstein": on_real.mean() - on_fake.mean(),
        "critic/gradient_penalty": penalty,
    }
    return {name: value.detach().item() for name, value in losses.items()}

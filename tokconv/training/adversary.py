"""The critics of a trial: their updates, and their pull on the compressed tokens.

The weight of an adversarial loss is relative (`loss.wgan.balance: gradient`). With z the compressed tokens, L the
weighted sum of all other losses and A one adversarial loss, A counts as

    weight * |dL/dz| / (|dA/dz| + delta) * A,    the ratio detached and at most `LARGEST_RATIO`

(Esser et al. 2021, arXiv:2012.09841, eq. 7, which takes the gradient at the decoder's last layer; Zheng et al. 2025,
arXiv:2510.11690, clamps it). With a weight of 1 a critic pulls as hard as everything else, whatever the grid, the width
and the scale of its scores. Taken at z, the ratio costs no second backward pass of compressor or decoder: dA/dz needs
the critic alone, and dL/dz arrives at z in the one backward pass there is (`Pull`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict

import torch
from torch import Tensor, nn

from tokconv.config.tree import Config
from tokconv.models.critic import Critic, critics_of
from tokconv.system.devices import send
from tokconv.training.losses.adversarial import CriticTerms, adversarial_loss, critic_loss
from tokconv.training.workers import Workers

PENALISED = 256
"""Tokens of a batch that a token critic's penalty is measured on, at least one of each image: its double backward would
be most of a step."""
DELTA = 1e-8
LARGEST_RATIO = 1e4
"""Above it a critic's own slope is next to nothing: what it says is noise, and is not made louder."""

Sides = tuple[Tensor, Tensor, Tensor]
"""Real and compressed tokens [b, p, C] that a penalty is measured on, and the mix of every pair [b * p] or [b]."""


class CriticUpdate(nn.Module):
    """The losses of all critics as one forward pass, so that DDP averages their gradients like any other."""

    def __init__(self, critic: nn.Module, kind: str) -> None:
        super().__init__()
        self.critic, self.kind = critic, kind

    def forward(self, real: Tensor, fake: Tensor, penalised: Sequence[Sides], lambda_gp: float) -> list[CriticTerms]:
        """Return the terms of every critic, in the order of `critics_of`.

        Args:
            real: [m * b, K, C]; fake: [b, K, C]; standardised.
            penalised: for every critic.
            lambda_gp: weight of the penalty.
        """
        return [
            critic_loss(
                critic.scores,
                critic.samples(real),
                critic.samples(fake),
                mix,
                lambda_gp,
                self.kind,
                (critic.samples(real_part), critic.samples(fake_part)),
            )
            for critic, (real_part, fake_part, mix) in zip(critics_of(self.critic).values(), penalised, strict=True)
        ]


class Pull:
    """What the critics add to the gradient that arrives at the compressed tokens.

    Args:
        slopes: of every adversarial loss, with its weight, [b, K, C] float32.
        weights: theirs.
        balanced: whether each slope is scaled to the norm of the gradient that arrives.
        workers: norms are those of the whole batch.
    """

    def __init__(self, slopes: Sequence[Tensor], weights: Sequence[float], balanced: bool, workers: Workers) -> None:
        self.weights, self._slopes, self._balanced, self._workers = weights, slopes, balanced, workers
        self.ratios = slopes[0].new_ones(len(slopes))
        """What each slope was multiplied by, [critics]; known after the backward pass."""

    def __call__(self, gradient: Tensor) -> Tensor:
        """Return the gradient [b, K, C] with the slopes added, in its own dtype."""
        if self._balanced:
            arrived, *own = self._norms([gradient, *self._slopes])
            plain = torch.stack([norm / weight for norm, weight in zip(own, self.weights, strict=True)])
            self.ratios = (arrived / (plain + DELTA)).clamp(max=LARGEST_RATIO)
        pulled = gradient.float()
        for slope, ratio in zip(self._slopes, self.ratios, strict=True):
            pulled = pulled + ratio * slope
        return pulled.to(gradient.dtype)

    def _norms(self, parts: Sequence[Tensor]) -> Tensor:
        """Return the norms of gradients of the whole batch's mean losses.

        Workers average their losses, so that a worker's part of a gradient is `count` times too large.
        """
        squares = torch.stack([part.float().square().sum() for part in parts])
        return (self._workers.mean(squares) / self._workers.count).sqrt()


class Adversaries:
    """The critics, their optimizer, and what they want of the compressed tokens.

    Args:
        critic: of `tokconv.models.registry.build_critic`, on its device.
        config: checked.
        wrap: `Runtime.wrap`.
        workers: the group that takes each step together, and this process's place in it.
        autocast: the precision of scores.
    """

    def __init__(
        self,
        critic: nn.Module,
        config: Config,
        *,
        wrap: Callable[[nn.Module], nn.Module],
        workers: Workers,
        autocast: Callable[[], AbstractContextManager[None]],
    ) -> None:
        self.critic, self.config, self.workers, self._autocast = critic, config, workers, autocast
        self.learning_rate = config.training.critic_learning_rate or config.training.learning_rate
        self._criticise = wrap(CriticUpdate(critic, config.loss.wgan.kind))
        # Gulrajani et al. 2017, algorithm 1, has no momentum for the critic.
        self.optimizer = torch.optim.Adam(
            self._criticise.parameters(), self.learning_rate, betas=(0.0, 0.9), fused=True
        )

    def update(
        self,
        fake: Tensor,
        draw_real: Callable[[], Tensor],
        generator: torch.Generator,
        checked: list[tuple[str, Tensor]],
    ) -> dict[str, Tensor]:
        """Update every critic `n_critic` times, each time against newly drawn real tokens.

        Args:
            fake: compressed tokens [b, K, C] without a graph.
            draw_real: returns one real token of each window, [b, K, C].
            generator: in the same state on every worker.
            checked: losses and gradients that must be finite are added to it.
        """
        # Both sides on one grid of numbers: a critic must not tell them apart by their rounding.
        fake, dtype = fake.float(), fake.dtype
        critics = critics_of(self.critic)
        for _ in range(self.config.training.n_critic):
            real = torch.cat([draw_real() for _ in range(self.config.loss.wgan.real_draws)]).to(dtype).float()
            penalised = [self._penalised(critic, real, fake, generator) for critic in critics.values()]
            with self._autocast():
                terms = self._criticise(real, fake, penalised, self.config.loss.wgan.lambda_gp)
            loss = torch.stack([found.loss for found in terms]).sum()
            self.optimizer.zero_grad()
            loss.backward()
            norm = nn.utils.get_total_norm([p.grad for p in self.critic.parameters() if p.grad is not None])
            checked += [("the critic's loss", loss), ("the critic's gradient", norm)]
            self.optimizer.step()
        figures = {}
        for name, found in zip(critics, terms, strict=True):
            figures[_figure("critic/wasserstein", name)] = found.wasserstein
            figures[_figure("critic/gradient_penalty", name)] = found.gradient_penalty
        return figures

    def pull(
        self, compressed: Tensor, draw_real: Callable[[], Tensor], share: float, checked: list[tuple[str, Tensor]]
    ) -> tuple[dict[str, Tensor], Pull | None]:
        """Return the adversarial losses, and their pull on the compressed tokens; None if they have no weight yet.

        Args:
            compressed: [b, K, C] without a graph; draw_real, checked: as in `update`.
            share: the share of their weight that is in force at this step.
        """
        config, critics = self.config.loss, critics_of(self.critic)
        real = draw_real().to(compressed.dtype).float()
        weights = [config.weights.wgan * share / len(critics)] * len(critics)
        point = compressed.float().requires_grad_(share > 0)
        figures: dict[str, Tensor] = {}
        slopes: list[Tensor] = []
        self.critic.requires_grad_(False)
        for (name, critic), weight in zip(critics.items(), weights, strict=True):
            with self._autocast():
                loss = adversarial_loss(critic.scores, critic.samples(point), critic.samples(real), config.wgan.kind)
            figures[_figure("train/adversarial", name)] = loss = loss.float()
            checked.append(("the adversarial loss", loss))
            if share > 0:
                slopes += torch.autograd.grad(loss, point, torch.full_like(loss, weight))
        self.critic.requires_grad_(True)
        figures = {name: loss.detach() for name, loss in figures.items()}
        if share == 0:
            return figures, None
        # Without another loss there is nothing to weigh against.
        others = any(value > 0 for name, value in asdict(config.weights).items() if name != "wgan")
        return figures, Pull(slopes, weights, config.wgan.balance == "gradient" and others, self.workers)

    def scales(self, pull: Pull | None) -> dict[str, Tensor]:
        """Return, after the backward pass, the weight that every adversarial loss had, as a figure."""
        if pull is None:
            return {}
        return {
            _figure("train/adversarial_scale", name): weight * ratio
            for name, weight, ratio in zip(critics_of(self.critic), pull.weights, pull.ratios, strict=True)
        }

    def _penalised(self, critic: Critic, real: Tensor, fake: Tensor, generator: torch.Generator) -> Sides:
        """Return what a critic's penalty is measured on: all images, or a few tokens of each."""
        size, cells = fake.shape[:2]
        group, mine = (self.workers.count, size), self.workers.rank
        if not critic.per_token:
            return real[:size], fake, torch.rand(*group, generator=generator)[mine]
        few = min(cells, math.ceil(PENALISED / self.config.training.batch_size))
        mix = torch.rand(*group, few, generator=generator)[mine].flatten()
        # Drawn apart: a real token and the compressed one of its own window resemble each other.
        sides = [
            side.gather(1, _few(torch.rand(*group, cells, generator=generator)[mine], few, side))
            for side in (real[:size], fake)
        ]
        return sides[0], sides[1], mix


def _few(drawn: Tensor, few: int, tokens_BKC: Tensor) -> Tensor:
    """Return the index of `few` random tokens of each image, for `gather`; drawn: [b, K] uniform."""
    chosen = send(drawn.argsort(dim=1)[:, :few], tokens_BKC.device)
    return chosen[..., None].expand(-1, -1, tokens_BKC.shape[2])


def _figure(name: str, critic: str) -> str:
    return f"{name}_{critic}" if critic else name

"""The penalty against finite differences and closed forms; the reconstruction losses against their definitions."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import ot
import pytest
import torch
from torch import Tensor, nn

from tokconv.config.overrides import compose
from tokconv.errors import ConfigError
from tokconv.models.critic import GridCritic
from tokconv.models.windows import Windows
from tokconv.training.losses.adversarial import (
    ADVERSARIES,
    adversarial_loss,
    critic_loss,
    gradient_penalty,
    zero_centered_penalty,
)
from tokconv.training.losses.distribution import distribution_loss, sinkhorn_loss, sliced_wasserstein_loss
from tokconv.training.losses.reconstruction import (
    anchor_loss,
    perceptual_loss,
    reconstruction_loss,
    spatial_loss,
    window_cosine_loss,
)
from tokconv.training.losses.terms import loss_terms
from tokconv.training.workers import SINGLE_PROCESS


def _critic(seed: int = 0) -> GridCritic:
    torch.manual_seed(seed)
    return GridCritic(5, num_layers=1, hidden_dim=6).double()


class _Float64(nn.Module):
    """A float64 critic for code that computes in float32, so that finite differences are exact enough."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, tokens: Tensor) -> Tensor:
        scores: Tensor = self.critic(tokens.double())
        return scores


def _batch() -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (
        torch.randn(3, 4, 5, generator=generator),
        torch.randn(3, 4, 5, generator=generator),
        torch.rand(3, generator=generator),
    )


@torch.no_grad()
def _score_slope(critic: nn.Module, sample: Tensor, step: Tensor, eps: float) -> float:
    return float(critic((sample + step)[None]) - critic((sample - step)[None])) / (2 * eps)


def test_gradient_norm_agrees_with_finite_differences() -> None:
    critic, (real, fake, mix) = _critic(), _batch()
    point = (mix.view(-1, 1, 1) * real + (1 - mix.view(-1, 1, 1)) * fake).double()
    eps, norms = 1e-5, []
    for sample in point:
        slopes = []
        for index in range(sample.numel()):
            step = torch.zeros(sample.numel(), dtype=torch.float64)
            step[index] = eps
            slopes.append(_score_slope(critic, sample, step.view_as(sample), eps))
        norms.append(torch.tensor(slopes).norm())
    expected = torch.stack([(norm - 1) ** 2 for norm in norms]).mean()
    assert gradient_penalty(_Float64(critic), real, fake, mix).item() == pytest.approx(expected.item(), rel=1e-4)


def test_penalty_gradient_of_weights_agrees_with_finite_differences() -> None:
    critic, (real, fake, mix) = _critic(), _batch()
    wrapped = _Float64(critic)
    gradient_penalty(wrapped, real, fake, mix).backward()
    eps = 1e-3
    for name, weight in critic.named_parameters():
        if weight.grad is None or weight.grad.abs().max() < 1e-6:
            continue
        place = int(weight.grad.abs().argmax())
        flat = weight.data.view(-1)
        before = flat[place].item()
        sides = []
        for side in (eps, -eps):
            flat[place] = before + side
            sides.append(gradient_penalty(wrapped, real, fake, mix).item())
        flat[place] = before
        assert (sides[0] - sides[1]) / (2 * eps) == pytest.approx(weight.grad.view(-1)[place].item(), rel=2e-2), name


def test_linear_critic_has_the_penalty_of_its_weight() -> None:
    weight = torch.randn(4, 5)
    real, fake, mix = _batch()
    penalty = gradient_penalty(lambda tokens: (tokens * weight).sum((1, 2)), real, fake, mix)
    assert penalty.item() == pytest.approx(((weight.norm() - 1) ** 2).item(), rel=1e-5)


def test_penalty_is_float32_under_autocast() -> None:
    real, fake, mix = _batch()
    critic = _critic().float()
    plain = gradient_penalty(critic, real, fake, mix)
    with torch.autocast("cpu", torch.bfloat16):
        cast = gradient_penalty(critic, real.bfloat16().float(), fake, mix)
        same = gradient_penalty(critic, real, fake, mix)
    assert torch.equal(plain, same)
    assert cast.dtype == torch.float32


def test_critic_loss_is_its_terms_and_leaves_compressed_tokens_alone() -> None:
    critic, (real, fake, mix) = _critic().float(), _batch()
    fake.requires_grad_()
    terms = critic_loss(critic, real, fake, mix, 10.0)
    expected = 10 * terms.gradient_penalty - (critic(real).mean() - critic(fake).mean())
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    terms.loss.backward()
    assert fake.grad is None
    adversarial_loss(critic, fake, real).backward()
    assert fake.grad is not None


def test_no_penalty_is_computed_for_lambda_zero() -> None:
    real, fake, mix = _batch()
    assert critic_loss(_critic().float(), real, fake, mix, 0.0).gradient_penalty.item() == 0


def test_hybrid_is_the_sum_and_perfect_is_zero() -> None:
    a, b = torch.randn(2, 9, 5), torch.randn(2, 9, 5)
    parts = [reconstruction_loss(kind, a, b) for kind in ("mse", "cosine", "hybrid")]
    assert torch.allclose(parts[0] + parts[1], parts[2])
    for kind in ("mse", "cosine", "hybrid"):
        assert reconstruction_loss(kind, b, b).item() == pytest.approx(0, abs=1e-6)
    assert reconstruction_loss("cosine", 3 * b, b).item() == pytest.approx(0, abs=1e-6)


def test_one_sided_penalty_spares_flat_critics() -> None:
    real, fake, mix = _batch()
    flat, steep = (lambda x: 0.01 * x.sum((1, 2))), (lambda x: 100 * x.sum((1, 2)))
    assert gradient_penalty(flat, real, fake, mix, one_sided=True).item() == 0
    assert gradient_penalty(flat, real, fake, mix).item() > 0.5
    two_sided = gradient_penalty(steep, real, fake, mix)
    assert torch.equal(gradient_penalty(steep, real, fake, mix, one_sided=True), two_sided)


def test_zero_centred_penalty_of_a_linear_critic_is_its_squared_slope() -> None:
    real, _, _ = _batch()
    slope = torch.randn(4, 5)
    found = zero_centered_penalty(lambda x: (x * slope).sum((1, 2)), real)
    assert found.item() == pytest.approx(slope.square().sum().item(), rel=1e-5)


def test_r3gan_is_its_equation_and_both_sides_pull_apart() -> None:
    critic, (real, fake, mix) = _critic().float(), _batch()
    terms = critic_loss(critic, real, fake, mix, 2.0, "r3gan")
    logits = critic(real) - critic(fake)
    penalties = zero_centered_penalty(critic, real) + zero_centered_penalty(critic, fake)
    expected = torch.log1p(torch.exp(-logits)).mean() + 2.0 / 2 * penalties
    assert terms.loss.item() == pytest.approx(expected.item(), rel=1e-5)
    generator = adversarial_loss(critic, fake, real, "r3gan")
    assert generator.item() == pytest.approx(torch.log1p(torch.exp(logits)).mean().item(), rel=1e-5)


def test_logistic_and_hinge_are_their_equations() -> None:
    critic, (real, fake, mix) = _critic().float(), _batch()
    on_real, on_fake = critic(real), critic(fake)
    terms = critic_loss(critic, real, fake, mix, 2.0, "logistic")
    penalties = zero_centered_penalty(critic, real) + zero_centered_penalty(critic, fake)
    plain = -on_real.sigmoid().log().mean() - (1 - on_fake.sigmoid()).log().mean()
    assert terms.loss.item() == pytest.approx((plain + 2.0 / 2 * penalties).item(), rel=1e-5)
    assert adversarial_loss(critic, fake, real, "logistic").item() == pytest.approx(
        -on_fake.sigmoid().log().mean().item(), rel=1e-5
    )
    hinge = torch.stack([1 - on_real, 1 + on_fake]).clamp_min(0).mean(1).sum()
    assert critic_loss(critic, real, fake, mix, 2.0, "hinge").loss.item() == pytest.approx(hinge.item(), rel=1e-5)
    assert adversarial_loss(critic, fake, real, "hinge").item() == pytest.approx(-on_fake.mean().item(), rel=1e-5)


@pytest.mark.parametrize("kind", ADVERSARIES)
def test_several_real_samples_count_as_their_mean(kind: str) -> None:
    critic, (real, fake, mix) = _critic().float(), _batch()
    other = torch.randn_like(real)
    several = critic_loss(critic, torch.cat([real, other]), fake, mix, 0.0, kind).loss
    single = [critic_loss(critic, one, fake, mix, 0.0, kind).loss for one in (real, other)]
    assert several.item() == pytest.approx(sum(single).item() / 2, rel=1e-5)  # type: ignore[union-attr]


def test_sliced_wasserstein_agrees_with_pot() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 8, generator=generator), 1.3 * torch.randn(200, 8, generator=generator) + 0.2
    loss = sliced_wasserstein_loss(a, b, torch.Generator().manual_seed(1))
    directions = torch.randn(8, 128, generator=torch.Generator().manual_seed(1))
    directions = torch.nn.functional.normalize(directions, dim=0)
    expected = ot.sliced_wasserstein_distance(a.numpy(), b.numpy(), projections=directions.numpy())
    assert loss.sqrt().item() == pytest.approx(expected, rel=1e-4)


def test_sinkhorn_agrees_with_pot() -> None:
    """geomloss anneals its blur, POT iterates at the last blur: they are equal once both have converged."""
    generator = torch.Generator().manual_seed(0)
    a, b = 0.5 * torch.randn(24, 4, generator=generator), 0.6 * torch.randn(24, 4, generator=generator) + 0.5
    blur = 0.1 * 4**0.5

    def transport(x: Tensor, y: Tensor) -> float:
        cost = ot.dist(x.double().numpy(), y.double().numpy()) / 2
        weights = [1 / len(x)] * len(x)
        plan = ot.sinkhorn(
            weights, weights, cost, blur**2, method="sinkhorn_log", numItermax=20_000, stopThr=1e-7, warn=False
        )
        # The dual value: transport cost plus the relative entropy to the product measure.
        entropy = float((plan * np.log(plan * len(x) * len(y) + 1e-300)).sum())
        return float((plan * cost).sum()) + blur**2 * entropy

    expected = transport(a, b) - (transport(a, a) + transport(b, b)) / 2
    assert sinkhorn_loss(a, b, scaling=0.999).item() * 4 == pytest.approx(expected, rel=1e-4)
    # Training uses the same number, annealed less finely.
    assert sinkhorn_loss(a, b).item() * 4 == pytest.approx(expected, rel=0.05)
    assert sinkhorn_loss(a, a).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize("kind", ["swd", "sinkhorn"])
def test_distribution_losses_pull_compressed_tokens_towards_real_ones(kind: str) -> None:
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randn(4, 36, 6, generator=generator)
    compressed = (0.1 * torch.randn(4, 9, 6, generator=generator) + 2).requires_grad_()
    first = distribution_loss(kind, compressed, tokens, torch.Generator().manual_seed(1))
    (gradient,) = torch.autograd.grad(first, compressed)
    closer = compressed.detach() - 5 * gradient / gradient.norm()
    assert distribution_loss(kind, closer, tokens, torch.Generator().manual_seed(1)) < first


def test_structural_losses_by_their_definitions() -> None:
    target = torch.randn(2, 16, 3)
    assert spatial_loss(target + 5, target).item() == pytest.approx(0, abs=1e-9)
    assert spatial_loss(target, target * 0).item() > 0
    assert perceptual_loss(7 * target, target).item() == pytest.approx(0, abs=1e-9)
    assert perceptual_loss(target.flip(2) + 1, target).item() > 0


def test_window_cosine_has_its_optimum_at_pooling() -> None:
    windows = Windows(4, 2)
    target = torch.randn(2, 16, 3)
    pooled = torch.nn.functional.normalize(windows.split(target), dim=-1).mean(2)
    best = window_cosine_loss(pooled, target, windows)
    for _ in range(20):
        assert window_cosine_loss(pooled + 0.05 * torch.randn_like(pooled), target, windows) > best
    assert anchor_loss(windows.split(target).mean(2), target, windows).item() == pytest.approx(0, abs=1e-9)


def test_only_the_reconstruction_and_weighted_losses_are_computed_in_a_fixed_order() -> None:
    """Two of them draw random numbers, so that the order is part of a run's figures."""
    config = compose(
        ["loss.weights.ae=0", "loss.weights.anchor=1", "loss.weights.perceptual=0.5", "loss.weights.distribution=2"]
    )
    target = torch.randn(2, 16, 3)
    terms = loss_terms(
        config.loss,
        torch.randn(2, 4, 3),
        target,
        target,
        windows=Windows(4, 2),
        generator=torch.Generator(),
        workers=SINGLE_PROCESS,
    )
    weights = {"reconstruction": 0, "perceptual": 0.5, "anchor": 1, "distribution": 2}
    assert {term.name: term.weight for term in terms} == weights
    assert [term.name for term in terms] == list(weights)
    assert float(terms[0].function()) == 0


@pytest.mark.parametrize(
    "compute",
    [
        lambda batch: critic_loss(_critic().float(), *batch, 10.0, "typo"),
        lambda batch: adversarial_loss(_critic().float(), batch[0], batch[1], "typo"),
        lambda batch: reconstruction_loss("typo", batch[0], batch[1]),
        lambda batch: distribution_loss("typo", batch[0], batch[1], torch.Generator()),
    ],
    ids=["critic", "adversarial", "reconstruction", "distribution"],
)
def test_an_unknown_kind_of_loss_is_refused(compute: Callable[[tuple[Tensor, Tensor, Tensor]], object]) -> None:
    with pytest.raises(ConfigError, match=r"^loss\.[a-z.]+: got 'typo'; allowed: "):
        compute(_batch())

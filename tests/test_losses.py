"""The penalty against finite differences and closed forms; the reconstruction losses against their definitions."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from tokconv.losses.adversarial import adversarial_loss, critic_loss, gradient_penalty
from tokconv.losses.reconstruction import reconstruction_loss
from tokconv.models.critic import GridCritic


def _critic(seed: int = 0) -> GridCritic:
    torch.manual_seed(seed)
    return GridCritic(5, num_layers=1, hidden_dim=6).double()


class _Float64(nn.Module):
    """Lets a float64 critic be called by code that computes in float32, so that differences are exact enough."""

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

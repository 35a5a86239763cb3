"""Every kind of critic: what it sees, and the adversarial losses that it trains with."""

from __future__ import annotations

import pytest
import torch
from support.trainers import SMALL, trainer_of

from tokconv.config.overrides import compose
from tokconv.models.critic import GridCritic, TokenCritic, critics_of
from tokconv.models.registry import CRITICS, build_critic
from tokconv.store.reader import TokenStore
from tokconv.training.losses.adversarial import ADVERSARIES, critic_loss


@pytest.mark.parametrize("kind", ["grid", "token", "multiscale"])
def test_a_critic_scores_each_sample_alone(kind: str) -> None:
    critic = build_critic(kind, dim=4, hidden_dim=8)
    tokens = torch.randn(5, 9, 4)
    samples = tokens.flatten(0, 1)[:, None] if kind == "token" else tokens
    alone = torch.stack([critic(sample[None])[0] for sample in samples])
    assert alone.shape == ((45,) if kind == "token" else (5,))
    assert torch.allclose(critic(tokens), alone, atol=1e-5)


def test_both_critics_are_a_token_and_a_grid_critic() -> None:
    critic = build_critic("both", dim=4, hidden_dim=8)
    found = critics_of(critic)
    assert {name: type(part) for name, part in found.items()} == {"token": TokenCritic, "grid": GridCritic}
    tokens = torch.randn(2, 9, 4)
    assert torch.equal(critic(tokens), torch.cat([found["token"](tokens), found["grid"](tokens)]))


@pytest.mark.parametrize("kind", ["grid", "token", "multiscale"])
def test_a_penalty_reaches_every_critic(kind: str) -> None:
    critic = build_critic(kind, dim=4, hidden_dim=8)
    real, fake = torch.randn(3, 16, 4), torch.randn(3, 16, 4)
    critic_loss(critic, real, fake, torch.rand(3), 10.0).loss.backward()
    assert all(p.grad is not None for name, p in critic.named_parameters() if not name.endswith("score.bias"))


def test_only_the_token_critic_ignores_the_arrangement() -> None:
    tokens = torch.randn(2, 16, 4)
    shuffled = tokens[:, torch.randperm(16, generator=torch.Generator().manual_seed(0))]
    for kind, same in (("token", True), ("grid", False), ("multiscale", False)):
        critic = build_critic(kind, dim=4, hidden_dim=8)
        plain, mixed = (critic(t).sort().values for t in (tokens, shuffled))
        assert torch.allclose(plain, mixed, atol=1e-5) is same


def test_spectral_norm_bounds_every_layer() -> None:
    critic = build_critic("grid", dim=4, hidden_dim=8, spectral_norm=True)
    for _ in range(50):
        critic(torch.randn(2, 9, 4))
    for module in critic.modules():
        if isinstance(module, torch.nn.Linear):
            assert torch.linalg.matrix_norm(module.weight, 2).item() == pytest.approx(1, abs=0.02)


@pytest.mark.parametrize("kind", ADVERSARIES)
@pytest.mark.parametrize("critic", CRITICS)
def test_every_adversarial_loss_trains_reproducibly(store: TokenStore, kind: str, critic: str) -> None:
    config = compose(
        [*SMALL, f"loss.wgan.kind={kind}", f"model.critic.kind={critic}", "training.n_critic=2",
         "model.compressor.output_grid_size=3"]
    )  # fmt: skip
    runs = []
    for _ in range(2):
        trainer = trainer_of(config, store)
        for step in range(2):
            terms = trainer.step(store.tokens(store.train_indices[:8]), step)
        runs.append({name: float(value) for name, value in terms.items()})
    assert runs[0] == runs[1]
    for end in ("_token", "_grid") if critic == "both" else ("",):
        assert {f"critic/wasserstein{end}", f"train/adversarial{end}", f"train/adversarial_scale{end}"} <= set(runs[0])


def test_the_adversarial_loss_is_off_until_its_start(store: TokenStore) -> None:
    overrides = [*SMALL, "loss.weights.ae=0", "model.compressor.output_grid_size=3"]
    config = compose([*overrides, "loss.wgan.start=0.5"])
    trainer = trainer_of(config, store)
    before = trainer.compressor.projection.weight.clone()  # type: ignore[union-attr]
    for step in range(10):
        trainer.step(store.tokens(store.train_indices[:8]), step)
        moved = not torch.equal(before, trainer.compressor.projection.weight)  # type: ignore[union-attr]
        assert moved is (step > 5)

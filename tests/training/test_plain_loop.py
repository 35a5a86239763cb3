"""The training step equals a plainly written one, loss by loss and step by step, whatever the plain one wastes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.networks import PUBLISHED
from support.plain_loop import Networks, Waste, plain_step
from support.stores import write_store
from torch import Tensor

from tokconv.config.overrides import compose
from tokconv.store.reader import TokenStore
from tokconv.training.step import Trainer, random_stream

STEPS, IMAGES = 8, 10
SMALL = [
    *PUBLISHED,
    *("model.compressor.output_grid_size=3", "model.compressor.hidden_dim=16", "model.autoencoder.hidden_dim=16"),
    *("model.critic.hidden_dim=16", "training.n_critic=3", "training.learning_rate=1e-3"),
]


def make_trainer(store: TokenStore, *overrides: str) -> Trainer:
    config = compose([*SMALL, *overrides])
    return Trainer(config, store, device=torch.device("cpu"), wrap=lambda module: module, total_steps=STEPS)


@pytest.mark.parametrize("waste", [Waste(), Waste(False, False, False, False)], ids=["wasteful", "thrifty"])
@pytest.mark.parametrize("overrides", [[], ["loss.weights.wgan=0.1"], ["loss.wgan.balance=none"]], ids=" ".join)
def test_every_loss_of_every_step_equals_the_plain_one(tmp_path: Path, waste: Waste, overrides: list[str]) -> None:
    store = write_store(tmp_path / "store")
    trainer, other = make_trainer(store, *overrides), make_trainer(store, *overrides)
    networks, config = _plain(other), trainer.config
    for step in range(STEPS):
        tokens = store.tokens(torch.arange(step, step + IMAGES))
        mine = {name: float(value) for name, value in trainer.step(tokens, step).items()}
        ours, theirs = trainer.optimizers.values(), (networks.generator_optimizer, networks.critic_optimizer)
        for own, other_own in zip(ours, theirs, strict=True):
            for group, other_group in zip(own.param_groups, other_own.param_groups, strict=True):
                other_group["lr"] = group["lr"]
        generator = random_stream(config.training.seed, step)
        standardised = other.compressor.standardise(tokens)

        def draw(generator: torch.Generator = generator, standardised: Tensor = standardised) -> tuple[Tensor, Tensor]:
            real = other.compressor.windows.sample(standardised, generator)
            return real, torch.rand(1, len(standardised), generator=generator)[0]

        plain = plain_step(
            networks,
            standardised,
            draw,
            n_critic=config.training.n_critic,
            lambda_gp=config.loss.wgan.lambda_gp,
            wgan=config.loss.weights.wgan,
            balanced=config.loss.wgan.balance == "gradient",
            grad_clip=config.training.grad_clip,
            waste=waste,
        )
        # A critic is determined up to a constant: the gradient of its last bias is rounding, which Adam enlarges.
        adversarial = plain.pop("train/adversarial")
        if step == 0 and not waste.separate_scores:
            assert mine["train/adversarial"] == pytest.approx(adversarial, rel=1e-5)
        for name, value in plain.items():
            assert mine[name] == pytest.approx(value, rel=1e-5, abs=1e-5), (step, name)


def _plain(trainer: Trainer) -> Networks:
    """Return the trainer's networks at their start, with plain optimizers."""
    groups = [{**group, "fused": False, "foreach": False} for group in trainer.autoencoder_optimizer.param_groups]
    return Networks(
        trainer.compressor.compress,
        trainer.decoder.decode,
        trainer.critic,
        [parameter for group in groups for parameter in group["params"]],
        torch.optim.Adam(groups, betas=(0.9, 0.95), foreach=False),
        torch.optim.Adam(trainer.critic.parameters(), betas=(0.0, 0.9), foreach=False),
    )

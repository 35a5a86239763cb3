"""The pull of critics on compressed tokens equals a plainly computed one; averaged weights are their definition."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support import networks
from support.stores import write_store
from torch import Tensor

from tokconv.config.overrides import compose
from tokconv.exports.artefact import export, load_compressor, load_decoder
from tokconv.models.critic import TokenCritic, critics_of
from tokconv.store.covariance import token_covariance, whitening
from tokconv.store.reader import TokenStore
from tokconv.training.adversary import LARGEST_RATIO, PENALISED, CriticUpdate, Pull
from tokconv.training.checkpoint import load
from tokconv.training.loop import run_trial
from tokconv.training.losses.adversarial import adversarial_loss
from tokconv.training.losses.reconstruction import anchor_loss, reconstruction_loss
from tokconv.training.runtime import LocalRuntime
from tokconv.training.step import WARM_UP, Trainer
from tokconv.training.workers import SINGLE_PROCESS

STILL = ["training.learning_rate=1e-12", "training.critic_learning_rate=1e-2", "training.grad_clip=1e9"]
"""Compressor and decoder stay where they are, so that their gradient can be computed once more after a step."""


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=48)


def make_trainer(store: TokenStore, *overrides: str, steps: int = 10) -> Trainer:
    config = compose([*networks.SMALL, *overrides])
    return Trainer(config, store, device=torch.device("cpu"), wrap=lambda module: module, total_steps=steps)


@pytest.mark.parametrize(
    "overrides",
    [
        ["loss.wgan.kind=logistic", "model.critic.kind=token"],
        ["model.critic.kind=both", "loss.weights.anchor=0.5", "loss.weights.wgan=0.3"],
        ["loss.wgan.kind=hinge", "model.critic.kind=multiscale", "model.critic.whiten=1"],
        ["model.compressor.kind=matryoshka", "model.compressor.grids=3", "loss.wgan.kind=logistic"],
        ["loss.wgan.balance=none", "model.critic.kind=both", "loss.weights.wgan=0.3"],
    ],
    ids=" ".join,
)
def test_the_gradient_is_that_of_two_backward_passes(store: TokenStore, overrides: list[str]) -> None:
    trainer = make_trainer(store, *overrides, *STILL)
    trainer.critic.eval()  # or spectral norm would take another step of its estimate below
    tokens = store.tokens(store.train_indices[:8])
    figures = trainer.step(tokens, 0)
    found = {name: weight.grad.clone() for name, weight in _weights(trainer).items() if weight.grad is not None}
    expected_scales = _reference(trainer, trainer.compressor.standardise(tokens))
    for name, weight in _weights(trainer).items():
        assert weight.grad is not None
        assert torch.allclose(found[name], weight.grad, rtol=1e-4, atol=1e-7), name
    assert any(gradient.abs().max() > 1e-4 for gradient in found.values())
    scales = [float(value) for name, value in figures.items() if name.startswith("train/adversarial_scale")]
    assert scales == pytest.approx(expected_scales, rel=1e-4)


def _weights(trainer: Trainer) -> dict[str, Tensor]:
    return {
        f"{role}.{name}": weight
        for role, network in (("compressor", trainer.compressor), ("decoder", trainer.decoder))
        for name, weight in network.named_parameters()
    }


def _reference(trainer: Trainer, real: Tensor) -> list[float]:
    """Compute the whole gradient with every ratio from backward passes of its own; return the weights in force."""
    loss, weights = trainer.config.loss, trainer.config.loss.weights
    compressed = trainer.compressor.compress(real)
    others = weights.ae * reconstruction_loss(loss.reconstruction, trainer.decoder.decode(compressed), real)
    others = others + weights.anchor * anchor_loss(compressed, real, trainer.compressor.windows)
    (slope,) = torch.autograd.grad(others, compressed, retain_graph=True)
    whole, critics, scales = others, critics_of(trainer.critic), []
    for critic in critics.values():
        scale = weights.wgan / len(critics)
        adversarial = adversarial_loss(critic.scores, critic.samples(compressed), compressed, loss.wgan.kind)
        if loss.wgan.balance == "gradient":
            (own,) = torch.autograd.grad(adversarial, compressed, retain_graph=True)
            scale *= float(slope.norm() / own.norm())
        whole = whole + scale * adversarial
        scales.append(scale)
    for weight in _weights(trainer).values():
        weight.grad = None
    whole.backward()
    return scales


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # of torch.compile itself
def test_compiled_networks_are_pulled_as_well(store: TokenStore) -> None:
    found = []
    for compiled in (False, True):
        trainer = make_trainer(store)
        if compiled:
            trainer._autoencode.compile(backend="eager")
        figures = [trainer.step(store.tokens(store.train_indices[:8]), step) for step in range(2)]
        found.append([{name: float(value) for name, value in row.items()} for row in figures])
    assert found[0][1]["train/adversarial_scale"] != 1
    for mine, other in zip(*found, strict=True):
        assert mine == pytest.approx(other, rel=1e-5)


def test_a_critic_that_says_nothing_is_not_made_louder() -> None:
    gradient = torch.randn(2, 3, 4)
    quiet, silent = 1e-9 * torch.randn(2, 3, 4), torch.zeros(2, 3, 4)
    pull = Pull([quiet, silent], [1.0, 1.0], True, SINGLE_PROCESS)
    assert (pull(gradient) - gradient).norm() <= LARGEST_RATIO * quiet.norm() * 1.01
    assert torch.isfinite(pull.ratios).all()
    half = Pull([torch.randn(2, 3, 4)], [1.0], True, SINGLE_PROCESS)(gradient.bfloat16())
    assert half.dtype == torch.bfloat16
    assert half.float().norm().item() == pytest.approx(2**0.5 * gradient.norm().item(), rel=0.5)


def test_a_critic_alone_has_nothing_to_be_weighed_against(store: TokenStore) -> None:
    trainer = make_trainer(store, "loss.weights.ae=0", "loss.weights.wgan=0.5")
    figures = trainer.step(store.tokens(store.train_indices[:8]), 5)
    assert float(figures["train/adversarial_scale"]) == 0.5
    assert float(figures["train/gradient_norm"]) > 0


def test_a_token_critic_is_penalised_on_a_few_tokens_of_every_image(
    store: TokenStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At most `PENALISED` tokens of a batch of `training.batch_size`, and as many pairs as tokens."""
    seen = []
    forward = CriticUpdate.forward

    def watch(self: CriticUpdate, real: Tensor, fake: Tensor, penalised: list[tuple[Tensor, ...]], weight: float):  # type: ignore[no-untyped-def]
        seen.append((real.shape, [side.shape for sides in penalised for side in sides]))
        return forward(self, real, fake, penalised, weight)  # type: ignore[arg-type]

    monkeypatch.setattr(CriticUpdate, "forward", watch)
    options = ("model.critic.kind=both", "training.batch_size=128", "training.n_critic=1", "loss.wgan.real_draws=3")
    make_trainer(store, *options).step(store.tokens(store.train_indices[:8]), 0)
    few, dim = PENALISED // 128, store.dim
    token, grid = [(8, few, dim), (8, few, dim), (8 * few,)], [(8, 9, dim), (8, 9, dim), (8,)]
    assert seen == [((24, 9, dim), [*token, *grid])]


@pytest.mark.parametrize(("schedule", "late"), [("constant", 1.0), ("linear", 0.1 + 0.9 * 0.02)])
def test_the_critics_learning_rate_has_a_schedule_of_its_own(store: TokenStore, schedule: str, late: float) -> None:
    trainer = make_trainer(
        store, f"training.critic_schedule={schedule}", "training.critic_learning_rate=0.5", steps=100
    )
    shares = []
    for step in (0, 90):
        trainer.step(store.tokens(store.train_indices[:8]), step)
        shares.append([trainer.optimizers[name].param_groups[0]["lr"] for name in ("critic", "autoencoder")])
    first = 1 / (WARM_UP * 100 + 1)
    assert shares[0] == pytest.approx([0.5 * first, 1e-3 * first])
    assert shares[1] == pytest.approx([0.5 * late, 1e-3 * (1 - 0.98 * 0.9)], rel=1e-3)


def test_averaged_weights_are_judged_kept_and_exported_and_the_raw_ones_go_on(
    store: TokenStore, tmp_path: Path
) -> None:
    trainer = make_trainer(store, "training.ema=0.5", "training.learning_rate=1e-2")
    name = "branch.leave.weight"
    average = trainer.compressor.get_parameter(name).detach().clone()
    for step in range(6):
        trainer.step(store.tokens(store.train_indices[:8]), step)
        decay = min(0.5, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * trainer.compressor.get_parameter(name).detach()
    assert torch.allclose(trainer.judged[0].get_parameter(name), average, atol=1e-6)
    assert not torch.allclose(trainer.compressor.get_parameter(name), average, atol=1e-6)

    config = compose([*networks.SMALL, "training.ema=0.9", "training.epochs=2", "training.learning_rate=1e-2"])
    result = run_trial(config, store, LocalRuntime(tmp_path / "run", device="cpu"))
    assert result.checkpoint is not None
    saved = load(result.checkpoint)
    kept, raw = (saved.module_weights(part)[name] for part in ("compressor", "raw_compressor"))
    exported = load_compressor(export(result, tmp_path / "out", epoch="last"))
    assert torch.equal(exported.get_parameter(name), kept)
    assert not torch.equal(kept, raw)
    tokens = store.tokens(store.val_indices)
    with torch.no_grad():
        restored = load_decoder(tmp_path / "out")(exported(tokens))
    unexplained = (restored - tokens).square().sum() / (tokens - store.mean).square().sum()
    assert result.history[-1]["val/fvu"] == pytest.approx(float(unexplained), rel=1e-4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_whitening_equalises_directions_and_keeps_the_average_variance(store: TokenStore, power: float) -> None:
    tokens = store.standardise(store.tokens(store.train_indices)).flatten(0, 1)
    covariance = token_covariance(store)
    assert torch.allclose(covariance, torch.cov(tokens.T.double(), correction=0), atol=1e-4)
    whiten, colour = whitening(covariance, power)
    assert torch.allclose(whiten @ colour, torch.eye(store.dim), atol=1e-4)
    variances = torch.linalg.eigvalsh(torch.cov((tokens @ whiten).T.double()))
    before = torch.linalg.eigvalsh(covariance)
    assert variances.mean().item() == pytest.approx(1, rel=1e-2)
    ratio, expected = variances[-1] / variances[0], (before[-1] / before[0]) ** (1 - power)
    assert ratio.item() == pytest.approx(expected.item(), rel=2e-2)
    critic = make_trainer(store, "model.critic.kind=token", f"model.critic.whiten={power}").critic
    assert isinstance(critic, TokenCritic)
    assert torch.allclose(critic.samples(tokens[None])[:, 0], tokens @ whiten, atol=1e-4)

"""The adaptive compressor: its closed-form start, its rank, its gradients, images without variance, half precision."""

from __future__ import annotations

import pytest
import torch
from support.stores import write_store
from torch import Tensor

from tokconv.config.overrides import compose
from tokconv.errors import ConfigError
from tokconv.evaluation.baselines.factorisation import own_factorisation
from tokconv.models.adaptive import AdaptiveCompressor, AdaptiveDecoder
from tokconv.store.reader import TokenStore
from tokconv.training.loop import check_store
from tokconv.training.networks import build_networks, network_arguments
from tokconv.training.step import Trainer

SMALL = [
    "model.compressor.kind=adaptive",
    "model.compressor.output_grid_size=3",
    "model.compressor.hidden_dim=8",
    "model.autoencoder.hidden_dim=8",
    "model.critic.hidden_dim=8",
    "loss.weights.wgan=0",
]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("adaptive") / "store")


def networks_of(store: TokenStore, *overrides: str) -> tuple[AdaptiveCompressor, AdaptiveDecoder]:
    """Return both networks at their start."""
    compressor, decoder, _ = build_networks(compose([*SMALL, *overrides]), store)
    assert isinstance(compressor, AdaptiveCompressor)
    assert isinstance(decoder, AdaptiveDecoder)
    return compressor, decoder


def stirred(store: TokenStore, rank: int = 2) -> tuple[AdaptiveCompressor, AdaptiveDecoder]:
    """Return networks in float64 whose branches are not zero."""
    networks = networks_of(store, f"model.compressor.rank={rank}")
    generator = torch.Generator().manual_seed(0)
    for network in networks:
        for name, parameter in network.double().named_parameters():
            if "leave" in name:
                torch.nn.init.normal_(parameter, std=0.05, generator=generator)
    return networks


@pytest.mark.parametrize("rank", [0, 2])
def test_both_start_at_the_factorisation_of_their_rank(store: TokenStore, rank: int) -> None:
    compressor, decoder = networks_of(store, f"model.compressor.rank={rank}")
    closed, tokens = own_factorisation(store, 3, rank), store.standardise(store.tokens(store.val_indices))
    assert closed.rank == compressor.rank == decoder.rank == rank
    cells = closed.encode(tokens, compressor.windows)
    assert torch.allclose(compressor.compress(tokens), cells, atol=1e-5)
    assert torch.allclose(decoder.decode(cells), closed.decode(cells, compressor.windows), atol=1e-5)


def test_a_rank_of_null_is_chosen_on_the_store_and_written_down(store: TokenStore) -> None:
    config = compose([*SMALL, "model.compressor.rank=null"])
    described = network_arguments(config, store.token_grid, store.dim, store)
    chosen = own_factorisation(store, 3).rank
    assert described["compressor"]["rank"] == described["decoder"]["rank"] == chosen
    assert networks_of(store)[0].rank == chosen
    assert network_arguments(config, 24, 384)["compressor"]["rank"] == 3


def test_a_rank_without_room_is_refused_before_anything_is_fitted(store: TokenStore) -> None:
    config = compose([*SMALL, "model.compressor.rank=99"])
    with pytest.raises(ConfigError, match=r"rank: got 99; 9 cells of 8 channels have room for at most 6; "):
        check_store(config, store)


def test_a_factorisation_is_the_only_start(store: TokenStore) -> None:
    with pytest.raises(ConfigError, match="an adaptive compressor starts at the image's own factorisation"):
        compose([*SMALL, "model.compressor.init=pooling"])
    with pytest.raises(ConfigError, match="an adaptive compressor has a decoder of its own"):
        compose([*SMALL, "model.autoencoder.kind=linear"])


@pytest.mark.parametrize("part", ["compressor.fitted.window_basis", "compressor.branch.leave.weight", "decoder"])
def test_gradients_of_the_error_agree_with_finite_differences(store: TokenStore, part: str) -> None:
    """That the numbers which cells share are constants of the backward pass does not show: they minimise the error."""
    compressor, decoder = networks_of(store, "model.compressor.rank=2")
    compressor.double()
    decoder.double()
    tokens = store.standardise(store.tokens(store.val_indices)).double()
    weights = dict(torch.nn.ModuleDict({"compressor": compressor, "decoder": decoder}).named_parameters())
    names = [name for name in weights if name.startswith(part)]

    def error() -> Tensor:
        return (decoder.decode(compressor.compress(tokens)) - tokens).square().sum()

    error().backward()
    for name in names:
        weight, gradient = weights[name], weights[name].grad
        assert gradient is not None
        assert torch.isfinite(gradient).all()
        direction = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0), dtype=weight.dtype)
        before, found = weight.detach().clone(), []
        with torch.no_grad():
            for step in (1e-5, -1e-5):
                weight.copy_(before + step * direction)
                found.append(float(error()))
            weight.copy_(before)
        slope = float((gradient * direction).sum())
        # Along random directions slopes are about as large as the gradient is long.
        assert slope == pytest.approx((found[0] - found[1]) / 2e-5, abs=0.02 * float(gradient.norm()) + 1e-6), name


def test_images_without_variance_have_small_gradients(store: TokenStore) -> None:
    compressor, decoder = stirred(store)
    tokens = torch.ones(2, store.num_tokens, store.dim, dtype=torch.float64, requires_grad=True)
    (decoder.decode(compressor.compress(tokens)) - tokens).square().mean().backward()
    gradients = [p.grad for network in (compressor, decoder) for p in network.parameters()]
    assert all(g is not None and torch.isfinite(g).all() and g.abs().max() < 1e3 for g in (*gradients, tokens.grad))


def test_an_image_does_not_depend_on_its_batch(store: TokenStore) -> None:
    compressor, decoder = stirred(store)
    tokens = store.standardise(store.tokens(store.val_indices)).double()
    cells = compressor.compress(tokens)
    assert torch.allclose(compressor.compress(tokens[3:4])[0], cells[3], atol=1e-10)
    assert torch.allclose(decoder.decode(cells[3:4])[0], decoder.decode(cells)[3], atol=1e-10)


@torch.no_grad()
def test_half_precision_costs_the_factorisation_no_more_than_rounding(store: TokenStore) -> None:
    compressor, decoder = networks_of(store, "model.compressor.rank=2")
    tokens = store.standardise(store.tokens(store.val_indices))
    exact = decoder.decode(compressor.compress(tokens))
    with torch.autocast("cpu", torch.bfloat16):
        half = decoder.decode(compressor.compress(tokens))
    assert half.dtype == exact.dtype == torch.float32
    # bfloat16 rounds to 1 in 256, four times on the way; Gram matrices rounded so would leave nothing of directions.
    assert float((half - exact).square().mean() / exact.var()) < 4 * (1 / 256) ** 2


def test_training_repeats_exactly_and_lowers_the_error(store: TokenStore) -> None:
    config = compose([*SMALL, "model.compressor.rank=2", "training.learning_rate=3e-3"])
    tokens, runs = store.tokens(store.train_indices[:16]), []
    for _ in range(2):
        trainer = Trainer(config, store, device=torch.device("cpu"), wrap=lambda module: module, total_steps=40)
        runs.append([float(trainer.step(tokens, step)["train/reconstruction"]) for step in range(40)])
    assert runs[0] == runs[1]
    assert runs[0][-1] < 0.9 * runs[0][0]

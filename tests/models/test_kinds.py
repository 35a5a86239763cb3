"""Every kind of compressor and decoder: shapes at any grid, closed-form starts, gradients, saved weights."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.trainers import SMALL, trainer_of

from tokconv.config.overrides import compose
from tokconv.errors import ConfigError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator
from tokconv.models.blocks import DepthwiseConv
from tokconv.models.matryoshka import MatryoshkaCompressor
from tokconv.models.progressive import stage_sizes
from tokconv.models.registry import COMPRESSORS, build_compressor, build_critic, build_decoder
from tokconv.store.reader import TokenStore
from tokconv.training.networks import build_networks, network_arguments, select_grid

PAIRS = [
    ("residual", "conv", {}),
    ("residual", "attention", {}),
    ("residual", "linear", {}),
    ("residual", "conv", {"padding": "partial"}),
    ("residual", "conv", {"norm": "none", "whiten": True}),
    ("conv", "conv", {}),
    ("conv", "conv", {"use_residual": False}),
    ("conv", "attention", {"padding": "partial", "norm": "none"}),
    ("matryoshka", "matryoshka", {"grids": (1, 2, 4, 5, 7)}),
    ("salient", "conv", {}),
    ("salient", "linear", {"padding": "partial", "norm": "none"}),
    ("adaptive", "adaptive", {}),
    ("adaptive", "adaptive", {"padding": "partial", "norm": "none"}),
]


@pytest.mark.parametrize("output_grid", [1, 2, 4, 5, 7])
@pytest.mark.parametrize(("compressor_kind", "decoder_kind", "extra"), PAIRS)
def test_exact_sizes_and_a_gradient_for_every_weight(
    compressor_kind: str, decoder_kind: str, extra: dict[str, Any], output_grid: int
) -> None:
    sizes = {"token_grid": 7, "dim": 4, "output_grid_size": output_grid, "hidden_dim": 8, **extra}
    compressor, decoder = build_compressor(compressor_kind, **sizes), build_decoder(decoder_kind, **sizes)
    for network in (compressor, decoder):
        # Branches end in a layer that starts at zero, which would let no gradient pass.
        for parameter in network.parameters():
            torch.nn.init.normal_(parameter, std=0.1)
    tokens = torch.randn(2, 49, 4)
    compressed = compressor(tokens)
    assert compressed.shape == (2, output_grid**2, 4)
    reconstructed = decoder(compressed)
    assert reconstructed.shape == tokens.shape
    (reconstructed - tokens).square().mean().backward()
    unused = [
        name
        for network in (compressor, decoder)
        for name, parameter in network.named_parameters()
        if parameter.grad is None
    ]
    other_grids = tuple(f".{grid}." for grid in extra.get("grids", ()) if grid != output_grid)
    assert all(any(part in name for part in other_grids) for name in unused)


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.compressor.kind=residual"],
        ["model.compressor.kind=conv"],
        ["model.compressor.kind=conv", "model.autoencoder.kind=attention"],
        ["model.compressor.whiten=true", "model.autoencoder.whiten=true"],
        ["model.compressor.kind=residual", "model.autoencoder.kind=linear"],
        ["model.compressor.kind=matryoshka", "model.compressor.grids=2-3-6"],
        ["model.compressor.kind=adaptive", "model.compressor.rank=0"],
        ["model.compressor.kind=adaptive"],
    ],
)
def test_training_starts_at_the_closed_form(store: TokenStore, overrides: list[str]) -> None:
    grids = (2, 3) if "grids" in overrides[-1] else (3,)
    config = compose([*SMALL, *overrides, "model.compressor.output_grid_size=3"])
    compressor, decoder, _ = build_networks(config, store)
    for grid in grids:
        select_grid(compressor, decoder, grid)
        figures = Evaluator(store, grid).evaluate(codec_of(compressor, decoder))
        name = "own_factorisation" if overrides[-1] == "model.compressor.kind=adaptive" else "matched_window_pca"
        closed = baseline_figures(store, grid, [name])[name]
        assert figures["val/fvu"] == pytest.approx(closed["val/fvu"], abs=1e-5)
        assert figures["val/swd"] == pytest.approx(closed["val/swd"], abs=1e-5)


def test_the_published_design_starts_at_random(store: TokenStore) -> None:
    config = compose(
        [*SMALL, "model.compressor.kind=conv", "model.compressor.use_residual=false",
         "model.compressor.output_grid_size=3"]
    )  # fmt: skip
    compressor, decoder, _ = build_networks(config, store)
    assert compressor.projection is None
    assert Evaluator(store, 3).evaluate(codec_of(compressor, decoder))["val/fvu"] > 0.5


@pytest.mark.parametrize(
    ("overrides", "projections"),
    [
        (["model.compressor.kind=residual"], {"compressor.projection", "decoder.projection"}),
        (["model.compressor.kind=conv"], {"compressor.projection", "decoder.projection"}),
        (["model.compressor.kind=conv", "model.compressor.use_residual=false"], set()),
        (
            ["model.compressor.kind=matryoshka", "model.compressor.grids=2-3"],
            {f"{network}.projections.{grid}" for network in ("compressor", "decoder") for grid in (2, 3)},
        ),
    ],
    ids=["residual", "conv", "conv-without-start", "matryoshka"],
)
def test_only_projections_that_start_at_a_closed_form_train_slowly(
    store: TokenStore, overrides: list[str], projections: set[str]
) -> None:
    trainer = trainer_of(compose([*SMALL, *overrides, "model.compressor.output_grid_size=3"]), store)
    slow = {
        parameter
        for group in trainer.autoencoder_optimizer.param_groups
        if group["share"] < 1
        for parameter in group["params"]
    }
    names = {
        f"{role}.{name}"
        for role, network in (("compressor", trainer.compressor), ("decoder", trainer.decoder))
        for name, parameter in network.named_parameters()
        if parameter in slow
    }
    assert names == {f"{name}.{part}" for name in projections for part in ("weight", "bias")}
    trainer.step(store.tokens(store.train_indices[:8]), 0)


@pytest.mark.parametrize(("token_grid", "output_grid", "layers"), [(24, 6, 3), (24, 7, 3), (24, 24, 2), (9, 1, 5)])
def test_stages_shrink_step_by_step_to_the_exact_grid(token_grid: int, output_grid: int, layers: int) -> None:
    sizes = stage_sizes(token_grid, output_grid, layers)
    assert (sizes[0], sizes[-1], len(sizes)) == (token_grid, output_grid, layers + 1)
    assert sizes == sorted(sizes, reverse=True)


def test_no_layer_of_a_progressive_compressor_runs_twice() -> None:
    compressor = build_compressor("conv", token_grid=7, dim=4, output_grid_size=3, hidden_dim=8, num_layers=3)
    calls: dict[str, int] = {}
    for name, module in compressor.named_modules():
        if isinstance(module, torch.nn.Linear | torch.nn.Conv2d):
            module.register_forward_hook(lambda *_, name=name: calls.update({name: calls.get(name, 0) + 1}))
    compressor(torch.randn(1, 49, 4))
    assert set(calls.values()) == {1}


def test_partial_convolution_does_not_darken_the_border() -> None:
    conv = DepthwiseConv(3, "partial")
    conv.weight.data.fill_(1 / 9)
    conv.bias.data.zero_()  # type: ignore[union-attr]
    flat = torch.ones(1, 3, 4, 5)
    assert torch.allclose(conv(flat), flat)
    zeros = DepthwiseConv(3)
    zeros.load_state_dict(conv.state_dict())
    assert zeros(flat)[0, 0, 0, 0].item() == pytest.approx(4 / 9)
    inner = torch.randn(1, 3, 6, 6)
    assert torch.allclose(conv(inner)[..., 1:-1, 1:-1], zeros(inner)[..., 1:-1, 1:-1], atol=1e-6)


def test_attention_agrees_with_torch() -> None:
    torch.manual_seed(0)
    decoder = build_decoder("attention", token_grid=4, dim=4, output_grid_size=2, hidden_dim=8, num_heads=2)
    layer = decoder.get_submodule("layers.0")
    reference = torch.nn.MultiheadAttention(8, 2, batch_first=True)
    state = layer.state_dict()
    reference.in_proj_weight.data = torch.cat([state["query.weight"], state["key_value.weight"]])
    reference.in_proj_bias.data = torch.cat([state["query.bias"], state["key_value.bias"]])
    reference.out_proj.load_state_dict({"weight": state["out.weight"], "bias": state["out.bias"]})
    hidden, memory = torch.randn(3, 16, 8), torch.randn(3, 4, 8)
    query, key = F.layer_norm(hidden, (8,)), F.layer_norm(memory, (8,))
    expected = hidden + reference(query, key, key, need_weights=False)[0]
    expected = expected + layer.narrow(F.gelu(layer.widen(F.layer_norm(expected, (8,)))))  # type: ignore[operator]
    assert torch.allclose(layer(hidden, memory), expected, atol=1e-5)


@pytest.mark.parametrize("kind", COMPRESSORS)
def test_every_kind_selects_the_grids_it_serves_and_refuses_others(kind: str) -> None:
    sizes = {"token_grid": 7, "dim": 4, "output_grid_size": 4, "hidden_dim": 8, "grids": (2, 4)}
    compressor = build_compressor(kind, **sizes)
    decoder = build_decoder(compressor.decoder_kind or "conv", **sizes)
    assert compressor.grids == decoder.grids == ((2, 4) if kind == "matryoshka" else (4,))
    for network in (compressor, decoder):
        for grid in network.grids:
            network.select(grid)
            assert network.output_grid_size == network.windows.output_grid == grid
        with pytest.raises(ConfigError, match=f"serves the grids {', '.join(map(str, network.grids))}"):
            network.select(3)


@pytest.mark.parametrize("build", [build_compressor, build_decoder, build_critic])
def test_an_unknown_kind_of_network_is_refused(build: Callable[..., object]) -> None:
    with pytest.raises(ConfigError, match=r"^model\.[a-z]+\.kind: got 'typo'; allowed: "):
        build("typo", token_grid=7, dim=4, output_grid_size=3)


def test_a_matryoshka_step_moves_only_the_drawn_grid(store: TokenStore) -> None:
    config = compose(
        [*SMALL, "model.compressor.kind=matryoshka", "model.compressor.grids=2-3", "loss.weights.wgan=0",
         "model.compressor.output_grid_size=3", "training.learning_rate=1e-2"]
    )  # fmt: skip
    trainer = trainer_of(config, store)
    compressor = trainer.compressor
    assert isinstance(compressor, MatryoshkaCompressor)
    moved = set()
    for step in range(8):
        before = {key: layer.weight.clone() for key, layer in compressor.projections.items()}  # type: ignore[operator]
        trainer.step(store.tokens(store.train_indices[:8]), step)
        changed = {key for key, layer in compressor.projections.items() if not torch.equal(before[key], layer.weight)}  # type: ignore[arg-type]
        assert len(changed) == 1
        moved |= changed
        assert compressor.output_grid_size == 3
    assert moved == {"2", "3"}


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.compressor.kind=conv", "model.autoencoder.kind=attention", "model.autoencoder.whiten=true"],
        ["model.compressor.kind=matryoshka", "model.compressor.grids=2-3", "model.compressor.whiten=true"],
    ],
)
def test_constructor_arguments_rebuild_the_networks(store: TokenStore, overrides: list[str], tmp_path: Path) -> None:
    config = compose([*SMALL, *overrides, "model.compressor.output_grid_size=3"])
    compressor, decoder, _ = build_networks(config, store)
    described = network_arguments(config, store.token_grid, store.dim)
    again = build_compressor(**described["compressor"]), build_decoder(**described["decoder"])
    again[0].load_state_dict(compressor.state_dict())
    again[1].load_state_dict(decoder.state_dict())
    tokens = store.tokens(store.val_indices[:3])
    assert torch.equal(again[0](tokens), compressor(tokens))
    assert torch.equal(again[1](compressor(tokens)), decoder(compressor(tokens)))

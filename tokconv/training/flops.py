"""The cost of networks: parameters and FLOPs per image, next to those of the encoder.

torch's own counter runs on tensors without data, so a tower of any size is counted in a second and no weights are
loaded. A multiplication and an addition are two FLOPs; norms and activations, under 1 % here, are not counted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tokconv.config.tree import Config, matryoshka_grids
from tokconv.models.registry import COMPRESSORS, CRITICS, DECODERS, build_compressor, build_critic, build_decoder
from tokconv.training.networks import network_arguments


@dataclass(frozen=True)
class Cost:
    """The cost of one network at one grid."""

    role: str
    """compressor, decoder or critic."""
    kind: str
    grid: int
    parameters: int
    flops: int
    """FLOPs of a forward pass of one image."""


def count(network: nn.Module, *shape: int) -> tuple[int, int]:
    """Return the parameters, and the FLOPs of a forward pass of an input of this shape."""
    parameters = sum(parameter.numel() for parameter in network.parameters())
    network = network.to("meta").requires_grad_(False)
    # The counter knows matrix products, but not every fused attention.
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(torch.zeros(*shape, device="meta"))
    return parameters, int(counter.get_total_flops())


def tower_flops(
    *, image_size: int, patch_size: int, dim: int, num_layers: int, mlp_dim: int, num_special_tokens: int = 1
) -> int:
    """Return the FLOPs of a whole vision transformer per image: patch embedding, attention and MLP of every layer.

    In closed form, a layer of T tokens costs 8 T C^2 in its projections, 4 T^2 C in its attention and
    4 T C M in its MLP.
    """
    patches = (image_size // patch_size) ** 2
    tokens = patches + num_special_tokens
    embedding = 2 * patches * 3 * patch_size**2 * dim
    layer = 8 * tokens * dim**2 + 4 * tokens**2 * dim + 4 * tokens * dim * mlp_dim
    return embedding + num_layers * layer


def costs(config: Config, token_grid: int, dim: int, grids: Sequence[int]) -> Iterator[Cost]:
    """Yield the cost of every kind of network at every grid, with the widths and depths of the config."""
    owners = {cls.decoder_kind: kind for kind, cls in COMPRESSORS.items() if cls.decoder_kind}
    for grid in grids:
        for kind in COMPRESSORS:
            yield _cost("compressor", kind, _with(config, grid, compressor=kind), token_grid, dim)
        for kind in DECODERS:
            pair = {"compressor": owners[kind]} if kind in owners else {"compressor": "residual", "decoder": kind}
            yield _cost("decoder", kind, _with(config, grid, **pair), token_grid, dim)
        for kind in CRITICS:
            values = {**asdict(config.model.critic), "kind": kind, "whiten": config.model.critic.whiten > 0}
            critic = build_critic(**values, dim=dim)
            yield Cost("critic", kind, grid, *count(critic, 1, grid**2, dim))


def _with(config: Config, grid: int, *, compressor: str, decoder: str = "conv") -> Config:
    grids = "-".join(str(served) for served in sorted({*matryoshka_grids(config.model.compressor), grid}))
    model = replace(
        config.model,
        compressor=replace(config.model.compressor, kind=compressor, output_grid_size=grid, grids=grids),
        autoencoder=replace(config.model.autoencoder, kind=decoder),
    )
    return replace(config, model=model)


def _cost(role: str, kind: str, config: Config, token_grid: int, dim: int) -> Cost:
    arguments = network_arguments(config, token_grid, dim)[role]
    grid = config.model.compressor.output_grid_size
    network: nn.Module = build_compressor(**arguments) if role == "compressor" else build_decoder(**arguments)
    tokens = token_grid**2 if role == "compressor" else grid**2
    return Cost(role, kind, grid, *count(network, 1, tokens, dim))

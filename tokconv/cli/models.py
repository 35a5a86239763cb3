"""`tokconv models`: what every network costs, next to the encoder whose tokens it compresses."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from tokconv.config.overrides import compose
from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.families import PUBLISHED_SHAPES, SHORT_NAMES
from tokconv.encoding.towers.hub import locate
from tokconv.encoding.towers.sizes import choose_image_size
from tokconv.encoding.towers.spec import describe, read_config
from tokconv.errors import DataError
from tokconv.models.registry import COMPRESSORS
from tokconv.models.windows import chosen_grids
from tokconv.training.flops import costs, tower_flops

BUDGET = 0.01
"""Share of the encoder's FLOPs that a compressor may cost."""


def run(args: argparse.Namespace) -> None:
    """Print parameters, FLOPs and share of the encoder's FLOPs of every kind of network.

    Raises:
        ConfigError: an invalid override or grid.
        DataError: the tower is neither published nor reachable.
    """
    config = compose(args.overrides)
    name, token_grid, dim, of_tower = tower_cost(config.model.clip)
    at_grids = chosen_grids(args.grids, token_grid)
    print(
        f"{name}: {token_grid}x{token_grid} tokens of {dim} channels, {_flops(of_tower)} per image; "
        "widths and depths as configured\n"
    )
    print(f"{'':<12}{'kind':<12}{'grid':>7}{'parameters':>13}{'FLOPs':>12}{'of encoder':>12}")
    model = config.model
    configured = {
        "compressor": model.compressor.kind,
        "decoder": COMPRESSORS[model.compressor.kind].decoder_kind or model.autoencoder.kind,
        "critic": model.critic.kind,
    }
    roles, before = list(configured), ""
    for cost in sorted(costs(config, token_grid, dim, at_grids), key=lambda cost: roles.index(cost.role)):
        role, before = cost.role if cost.role != before else "", cost.role
        share = cost.flops / of_tower
        chosen = " *" if cost.kind == configured[cost.role] else ""
        over = "  more than 1 %" if cost.role == "compressor" and share > BUDGET else ""
        print(
            f"{role:<12}{cost.kind + chosen:<12}{f'{cost.grid}x{cost.grid}':>7}{cost.parameters / 1e6:>11.2f} M"
            f"{_flops(cost.flops):>12}{share:>12.3%}{over}"
        )
    print("\n* as configured. FLOPs of one image forward; critic and decoder run only in training.")


def tower_cost(clip: ClipConfig) -> tuple[str, int, int, int]:
    """Return the name, the token grid, the channels and the FLOPs per image of a vision tower."""
    name = SHORT_NAMES.get(clip.model_name, clip.model_name)
    if (shape := PUBLISHED_SHAPES.get(name)) is not None:
        patch_size, dim, layers, mlp_dim = shape.patch_size, shape.dim, shape.num_layers, shape.mlp_dim
        num_special = shape.num_special_tokens
        image_size = choose_image_size(clip.image_size, shape.image_size, patch_size, shape.family, name)
        grid = image_size // patch_size
    else:
        spec, located = describe(clip), locate(clip.model_name, clip.revision)
        family, vision = read_config(located.folder, name)
        image_size, grid, dim, layers = spec.image_size, spec.token_grid, spec.dim, spec.num_layers
        mlp_dim, num_special = _mlp_dim(vision, dim, name), family.num_special_tokens(vision)
        patch_size = image_size // grid
    flops = tower_flops(
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        num_layers=layers,
        mlp_dim=mlp_dim,
        num_special_tokens=num_special,
    )
    return name, grid, dim, flops


def _mlp_dim(vision: Mapping[str, Any], dim: int, name: str) -> int:
    """Return the width of the MLP; a gated one, of three matrices, counts as one of 1.5 times its width."""
    width = vision.get("intermediate_size", vision.get("mlp_ratio", 4) * dim)
    if not isinstance(width, int) or width < 1:
        raise DataError(f"model.clip.model_name: intermediate_size of {name!r} is {width!r}; correct its config")
    if vision.get("use_swiglu_ffn"):
        # DINOv2 takes two thirds of the width, rounded up to a multiple of 8, for each of the three.
        width = (width * 2 // 3 + 7) // 8 * 8
    return width * 3 // 2 if vision.get("use_swiglu_ffn") or vision.get("use_gated_mlp") else width


def _flops(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP" if flops >= 1e9 else f"{flops / 1e6:.3g} MFLOP"

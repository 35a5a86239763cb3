"""`tokconv models`: what every network costs, next to the encoder whose tokens it compresses."""

from __future__ import annotations

import argparse
from dataclasses import dataclass

from tokconv.config.overrides import compose
from tokconv.config.tree import ClipConfig, Config
from tokconv.encoding.towers.families import PUBLISHED_SHAPES, SHORT_NAMES
from tokconv.encoding.towers.hub import locate
from tokconv.encoding.towers.spec import describe, read_config
from tokconv.errors import DataError
from tokconv.models.registry import COMPRESSORS
from tokconv.models.windows import chosen_grids
from tokconv.training.flops import costs, tower_flops

BUDGET = 0.01
"""Share of the encoder's FLOPs that a compressor may cost."""


@dataclass(frozen=True)
class Tower:
    """What the cost of a vision tower depends on, and the cost."""

    name: str
    token_grid: int
    dim: int
    flops: int


def run(args: argparse.Namespace) -> None:
    """Print parameters, FLOPs and share of the encoder's FLOPs of every kind of network.

    Raises:
        ConfigError: an invalid override or grid.
        DataError: the tower is neither published nor reachable.
    """
    config = compose(args.overrides)
    tower = _tower(config.model.clip)
    at_grids = chosen_grids(args.grids, tower.token_grid)
    print(
        f"{tower.name}: {tower.token_grid}x{tower.token_grid} tokens of {tower.dim} channels, "
        f"{_flops(tower.flops)} per image; widths and depths as configured\n"
    )
    print(f"{'':<12}{'kind':<12}{'grid':>7}{'parameters':>13}{'FLOPs':>12}{'of encoder':>12}")
    before = ""
    for cost in sorted(costs(config, tower.token_grid, tower.dim, at_grids), key=lambda cost: ROLES.index(cost.role)):
        role, before = cost.role if cost.role != before else "", cost.role
        share = cost.flops / tower.flops
        chosen = " *" if cost.kind == _configured(config, cost.role) else ""
        over = "  more than 1 %" if cost.role == "compressor" and share > BUDGET else ""
        print(
            f"{role:<12}{cost.kind + chosen:<12}{f'{cost.grid}x{cost.grid}':>7}{cost.parameters / 1e6:>11.2f} M"
            f"{_flops(cost.flops):>12}{share:>12.3%}{over}"
        )
    print("\n* as configured. FLOPs of one image forward; critic and decoder run only in training.")


ROLES = ("compressor", "decoder", "critic")


def _configured(config: Config, role: str) -> str:
    model = config.model
    own_decoder = COMPRESSORS[model.compressor.kind].decoder_kind
    kinds = {
        "compressor": model.compressor.kind,
        "decoder": own_decoder or model.autoencoder.kind,
        "critic": model.critic.kind,
    }
    return kinds[role]


def _tower(clip: ClipConfig) -> Tower:
    name = SHORT_NAMES.get(clip.model_name, clip.model_name)
    if name in PUBLISHED_SHAPES:
        image_size, patch_size, dim, layers, mlp_dim = PUBLISHED_SHAPES[name]
        class_token = True
        grid = image_size // patch_size
    else:
        spec, located = describe(clip), locate(clip.model_name, clip.revision)
        family, vision = read_config(located.folder, name)
        mlp_dim = vision.get("intermediate_size", 4 * spec.dim)
        if not isinstance(mlp_dim, int) or mlp_dim < 1:
            raise DataError(f"model.clip.model_name: intermediate_size of {name!r} is {mlp_dim!r}; correct its config")
        image_size, grid, dim, layers = spec.image_size, spec.token_grid, spec.dim, spec.num_layers
        patch_size, class_token = image_size // grid, family.num_class_tokens > 0
    flops = tower_flops(
        image_size=image_size,
        patch_size=patch_size,
        dim=dim,
        num_layers=layers,
        mlp_dim=mlp_dim,
        class_token=class_token,
    )
    return Tower(name, grid, dim, flops)


def _flops(flops: int) -> str:
    return f"{flops / 1e9:.3g} GFLOP" if flops >= 1e9 else f"{flops / 1e6:.3g} MFLOP"

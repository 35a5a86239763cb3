"""A config and a store to networks at their closed-form start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokconv.config.tree import Config, matryoshka_grids
from tokconv.evaluation.baselines import linear_codecs
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.matryoshka import MatryoshkaCompressor, MatryoshkaDecoder
from tokconv.models.registry import COMPRESSORS, DECODERS, arguments, build_compressor, build_critic, build_decoder
from tokconv.store.reader import TokenStore

STARTS = {"pca": "matched_window_pca", "pooling": "pooling"}
"""`model.compressor.init` -> the linear codec that fills the window projections."""


@dataclass(frozen=True)
class TokenShape:
    """What networks need to know of tokens that are not there, to be planned for: as `TokenStore`."""

    token_grid: int
    dim: int
    mean: Tensor
    scale: float = 1.0


def network_arguments(config: Config, token_grid: int, dim: int) -> dict[str, dict[str, Any]]:
    """Kind and constructor arguments of `compressor` and `decoder`, JSON: what a checkpoint and an export hold."""
    compressor, decoder = asdict(config.model.compressor), asdict(config.model.autoencoder)
    if compressor["kind"] == "matryoshka":
        decoder["kind"] = "matryoshka"
        grids = [grid for grid in matryoshka_grids(config.model.compressor) if grid <= token_grid]
        compressor["grids"] = decoder["grids"] = grids
    sizes = {"token_grid": token_grid, "dim": dim, "output_grid_size": compressor["output_grid_size"]}
    return {
        "compressor": {"kind": compressor["kind"], **arguments(COMPRESSORS[compressor["kind"]], compressor | sizes)},
        "decoder": {"kind": decoder["kind"], **arguments(DECODERS[decoder["kind"]], decoder | sizes)},
    }


def build_networks(config: Config, store: TokenStore | TokenShape) -> tuple[Compressor, Decoder, nn.Module]:
    """New compressor, decoder and critic on the CPU, drawn from `training.seed`, at their closed-form start.

    A conv compressor without a window projection starts at random, and its decoder with it; so does everything when
    there are no tokens yet.
    """
    networks = network_arguments(config, store.token_grid, store.dim)
    scaling: dict[str, Any] = {"mean": store.mean, "scale": store.scale}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        compressor = build_compressor(**networks["compressor"] | scaling)
        decoder = build_decoder(**networks["decoder"] | scaling)
        critic = build_critic(
            **asdict(config.model.critic), dim=store.dim, spectral_norm=config.loss.wgan.kind == "wgan_sn"
        )
    if isinstance(store, TokenShape):
        return compressor, decoder, critic
    chosen = compressor.output_grid_size
    for grid in compressor.grids if isinstance(compressor, MatryoshkaCompressor) else (chosen,):
        select_grid(compressor, decoder, grid)
        if compressor.projection is not None:
            linear_codecs(store, grid)[STARTS[config.model.compressor.init]].fill(compressor, decoder)
    select_grid(compressor, decoder, chosen)
    return compressor, decoder, critic


def select_grid(compressor: Compressor, decoder: Decoder, output_grid_size: int) -> None:
    """Use this grid of a matryoshka pair; nothing to do for the other kinds, which have one."""
    if isinstance(compressor, MatryoshkaCompressor) and isinstance(decoder, MatryoshkaDecoder):
        compressor.select(output_grid_size)
        decoder.select(output_grid_size)

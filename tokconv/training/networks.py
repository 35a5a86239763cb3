"""From a config and a store to networks at their closed-form start."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from tokconv.config.tree import Config, matryoshka_grids
from tokconv.evaluation.baselines.factorisation import own_factorisation
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.registry import SHOWN_DURING_TRAINING
from tokconv.models.adaptive import AdaptiveCompressor, AdaptiveDecoder
from tokconv.models.blocks import ChannelMap, Standardise
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.factorisation import balanced_rank
from tokconv.models.registry import COMPRESSORS, DECODERS, arguments, build_compressor, build_critic, build_decoder
from tokconv.models.salient import SalientCompressor
from tokconv.models.windows import Windows
from tokconv.store.covariance import token_covariance, whitening
from tokconv.store.reader import TokenStore
from tokconv.training.losses.adversarial import ADVERSARIES

OWN_STARTS = {"adaptive": "own_factorisation", "salient": "salient"}
"""Kind of compressor -> the baseline that it starts at, of those that `STARTS` does not start."""
STARTS = {"pca": "matched_window_pca", "pooling": "pooling"}
"""`model.compressor.init` -> the linear codec that fills the window projections."""


@dataclass(frozen=True)
class TokenShape:
    """What networks need to know about tokens that do not exist yet; its fields are those of `TokenStore`."""

    token_grid: int
    dim: int
    mean: Tensor
    scale: float = 1.0


def network_arguments(
    config: Config, token_grid: int, dim: int, store: TokenStore | None = None
) -> dict[str, dict[str, Any]]:
    """Return kind and constructor arguments of `compressor` and `decoder`, as JSON values for checkpoints and exports.

    Args:
        store: what `model.compressor.rank=null` is chosen on; None takes the rank that fills the cells, which costs
            about as much as the highest that may be chosen.

    Raises:
        ConfigError: there is no such kind.
    """
    compressor, decoder = asdict(config.model.compressor), asdict(config.model.autoencoder)
    if own_decoder := COMPRESSORS[compressor["kind"]].decoder_kind:
        grids = [grid for grid in matryoshka_grids(config.model.compressor) if grid <= token_grid]
        compressor["grids"] = decoder["grids"] = grids
        decoder["kind"] = own_decoder
        if own_decoder == "adaptive":
            compressor["rank"] = decoder["rank"] = _rank(config, token_grid, dim, store)
    sizes = {"token_grid": token_grid, "dim": dim, "output_grid_size": compressor["output_grid_size"]}
    return {
        "compressor": {"kind": compressor["kind"], **arguments(COMPRESSORS[compressor["kind"]], compressor | sizes)},
        "decoder": {"kind": decoder["kind"], **arguments(DECODERS[decoder["kind"]], decoder | sizes)},
    }


def _rank(config: Config, token_grid: int, dim: int, store: TokenStore | None) -> int:
    chosen, grid = config.model.compressor.rank, config.model.compressor.output_grid_size
    if chosen is not None:
        return chosen
    if store is not None:
        return own_factorisation(store, grid).rank
    return int(balanced_rank(Windows(token_grid, grid), dim))


def shown_baselines(config: Config) -> tuple[str, ...]:
    """Return the baselines that the first step of a run waits for: those that every run is shown with, and the one that
    an adaptive or a salient compressor starts at."""
    compressor = config.model.compressor
    starts_elsewhere = compressor.kind == "adaptive" and compressor.rank is not None
    if compressor.kind not in OWN_STARTS or starts_elsewhere:
        return SHOWN_DURING_TRAINING
    return (*SHOWN_DURING_TRAINING, OWN_STARTS[compressor.kind])


def build_networks(config: Config, store: TokenStore | TokenShape) -> tuple[Compressor, Decoder, nn.Module]:
    """Build compressor, decoder and critic on the CPU, drawn from `training.seed`, at their closed-form start.

    A conv compressor without a window projection starts at random, and its decoder with it. Without tokens (a
    `TokenShape`) everything starts at random.
    """
    tokens = store if isinstance(store, TokenStore) else None
    networks = network_arguments(config, store.token_grid, store.dim, tokens)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.training.seed)
        compressor = build_compressor(**networks["compressor"])
        decoder = build_decoder(**networks["decoder"])
        spectral_norm = ADVERSARIES[config.loss.wgan.kind].spectral_norm
        chosen = asdict(config.model.critic) | {"whiten": config.model.critic.whiten > 0}
        critic = build_critic(**chosen, dim=store.dim, spectral_norm=spectral_norm)
    for network in (compressor, decoder):
        network.standardise = Standardise(store.dim, store.mean, store.scale)
    if isinstance(store, TokenStore):
        _fill_channel_maps(config, store, compressor, decoder, critic)
        for grid in compressor.grids:
            select_grid(compressor, decoder, grid)
            _fill_start(config, store, compressor, decoder)
        select_grid(compressor, decoder, config.model.compressor.output_grid_size)
    return compressor, decoder, critic


def _fill_start(config: Config, store: TokenStore, compressor: Compressor, decoder: Decoder) -> None:
    """Set both networks to the closed form of the grid that is selected, unless they start at random."""
    grid = compressor.output_grid_size
    if isinstance(compressor, AdaptiveCompressor) and isinstance(decoder, AdaptiveDecoder):
        closed, covariance = own_factorisation(store, grid, config.model.compressor.rank), token_covariance(store)
        compressor.fill(closed, covariance)
        decoder.fill(closed, covariance)
    elif isinstance(compressor, SalientCompressor):
        assert decoder.projection is not None
        decoder.projection.fill(*fitted_baselines(store, grid).decoder(OWN_STARTS["salient"]))
    elif compressor.projection is not None:
        fitted_baselines(store, grid).linear[STARTS[config.model.compressor.init]].fill(compressor, decoder)


def _fill_channel_maps(config: Config, store: TokenStore, *networks: nn.Module) -> None:
    """Set the coordinates in which branches write and read and critics see, from the covariance of real tokens."""
    maps = [(name, found) for net in networks for name, found in net.named_modules() if isinstance(found, ChannelMap)]
    if not maps:
        return
    covariance = token_covariance(store)
    whiten, colour = whitening(covariance)
    seen, _ = whitening(covariance, config.model.critic.whiten)
    chosen = {"whiten": whiten, "colour": colour, "coordinates": seen}
    for name, found in maps:
        found.matrix.copy_(chosen[name.rpartition(".")[2]])


def select_grid(compressor: Compressor, decoder: Decoder, output_grid_size: int) -> None:
    """Make both networks use this grid. Raises ConfigError if they do not serve it."""
    compressor.select(output_grid_size)
    decoder.select(output_grid_size)

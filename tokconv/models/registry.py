"""The kinds of networks, by the names that the config, a checkpoint and an export give them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from tokconv.models.adaptive import AdaptiveCompressor, AdaptiveDecoder
from tokconv.models.compressor import Compressor, ResidualCompressor
from tokconv.models.critic import BothCritics, GridCritic, MultiScaleCritic, TokenCritic, with_spectral_norm
from tokconv.models.decoder import AttentionDecoder, ConvDecoder, Decoder, LinearDecoder
from tokconv.models.matryoshka import MatryoshkaCompressor, MatryoshkaDecoder
from tokconv.models.progressive import ConvCompressor
from tokconv.models.salient import SalientCompressor
from tokconv.system.registry import Registry

COMPRESSORS: Registry[type[Compressor]] = Registry(
    "model.compressor.kind",
    {
        "residual": ResidualCompressor,
        "conv": ConvCompressor,
        "matryoshka": MatryoshkaCompressor,
        "adaptive": AdaptiveCompressor,
        "salient": SalientCompressor,
    },
)
DECODERS: Registry[type[Decoder]] = Registry(
    "model.autoencoder.kind",
    {
        "conv": ConvDecoder,
        "attention": AttentionDecoder,
        "linear": LinearDecoder,
        "matryoshka": MatryoshkaDecoder,
        "adaptive": AdaptiveDecoder,
    },
)
CRITICS: Registry[type[nn.Module]] = Registry(
    "model.critic.kind",
    {"grid": GridCritic, "token": TokenCritic, "multiscale": MultiScaleCritic, "both": BothCritics},
)


def arguments(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return those of the values that the class's constructor takes."""
    return {name: values[name] for name in inspect.signature(cls).parameters if name in values}


def build_compressor(kind: str, **values: Any) -> Compressor:
    """Build a compressor of a kind; values that its constructor does not take are ignored.

    Raises:
        ConfigError: there is no such kind.
    """
    cls = COMPRESSORS[kind]
    return cls(**arguments(cls, values))


def build_decoder(kind: str, **values: Any) -> Decoder:
    """Build a decoder of a kind, as `build_compressor` does."""
    cls = DECODERS[kind]
    return cls(**arguments(cls, values))


def build_critic(kind: str, *, spectral_norm: bool = False, **values: Any) -> nn.Module:
    """Build a critic of a kind, as `build_compressor` does.

    With spectral norm the critic has no LayerNorm, which would undo its Lipschitz bound.
    """
    cls = CRITICS[kind]
    critic = cls(**arguments(cls, {**values, "norm": "none" if spectral_norm else "layer"}))
    return with_spectral_norm(critic) if spectral_norm else critic

"""Networks by kind: what the config, a checkpoint and an export call them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from torch import nn

from tokconv.models.compressor import Compressor, ResidualCompressor
from tokconv.models.critic import GridCritic, MultiScaleCritic, TokenCritic, with_spectral_norm
from tokconv.models.decoder import AttentionDecoder, ConvDecoder, Decoder
from tokconv.models.matryoshka import MatryoshkaCompressor, MatryoshkaDecoder
from tokconv.models.progressive import ConvCompressor

COMPRESSORS: dict[str, type[Compressor]] = {
    "residual": ResidualCompressor,
    "conv": ConvCompressor,
    "matryoshka": MatryoshkaCompressor,
}
DECODERS: dict[str, type[Decoder]] = {
    "conv": ConvDecoder,
    "attention": AttentionDecoder,
    "linear": Decoder,
    "matryoshka": MatryoshkaDecoder,
}
CRITICS: dict[str, type[nn.Module]] = {"grid": GridCritic, "token": TokenCritic, "multiscale": MultiScaleCritic}


def arguments(cls: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """Those of the values that the class's constructor takes."""
    return {name: values[name] for name in inspect.signature(cls).parameters if name in values}


def build_compressor(kind: str, **values: Any) -> Compressor:
    """A compressor of a kind; values that its constructor does not take are left out.

    Raises:
        KeyError: no such kind.
    """
    cls = COMPRESSORS[kind]
    return cls(**arguments(cls, values))


def build_decoder(kind: str, **values: Any) -> Decoder:
    """As `build_compressor`."""
    cls = DECODERS[kind]
    return cls(**arguments(cls, values))


def build_critic(kind: str, *, spectral_norm: bool = False, **values: Any) -> nn.Module:
    """As `build_compressor`; with spectral norm the critic has no other norm, which would undo its Lipschitz bound."""
    cls = CRITICS[kind]
    critic = cls(**arguments(cls, {**values, "norm": "none" if spectral_norm else "layer"}))
    return with_spectral_norm(critic) if spectral_norm else critic

"""The checks of single values, and of a whole config."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

from tokconv.config.keys import BOUNDS, KEYS, get
from tokconv.config.sources import OPTIONAL_KEYS, SOURCES
from tokconv.config.tree import Config, ModelConfig, matryoshka_grids
from tokconv.errors import ConfigError, suggest

OWN_DECODERS = {"matryoshka": "a matryoshka", "adaptive": "an adaptive"}
"""The kinds of compressors that have a decoder of their own, as messages call them."""

OWN_STARTS = {
    "adaptive": "an adaptive compressor starts at the image's own factorisation",
    "salient": "a salient compressor starts at means weighted by salience",
}
"""The kinds of compressors that `model.compressor.init` does not start."""


def check_key(key: str) -> None:
    """Raise ConfigError, with the nearest name, if there is no such key."""
    if key not in KEYS:
        raise ConfigError(f"{key}: unknown; {suggest(key, KEYS)}")


def check_value(key: str, value: Any) -> None:
    """Raise ConfigError if a value of the right type is out of its bounds."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: got {value!r}; must be a finite number")
    bound = BOUNDS.get(key)
    if value is not None and bound is not None and not bound.allows(value):
        raise ConfigError(f"{key}: got {value!r}; {bound.rule}")


def validate(config: Config) -> Config:
    """Check every bound, and the keys that depend on each other; return the config itself.

    Raises:
        ConfigError: the key, the value and the rule.
    """
    for key in KEYS:
        check_value(key, get(config, key))
    check_combination(config)
    return config


def check_combination(config: Config) -> None:
    """Check the keys that depend on each other; every value by itself is within its bounds.

    Raises:
        ConfigError: the keys, the values and the rule.
    """
    if not any(dataclasses.asdict(config.loss.weights).values()):
        raise ConfigError("loss.weights: all are 0, nothing would be trained; raise ae or another one")
    if config.loss.weights.vlm > 0 and config.loss.vlm.model is None:
        raise ConfigError(
            f"loss.weights.vlm: got {config.loss.weights.vlm:g}, and no model that could teach; name the directory of "
            "one with loss.vlm.model"
        )
    _check_model(config.model)
    source = config.data.source
    if config.data.root is None and (root := SOURCES[source].root):
        raise ConfigError(f"data.root: missing; data.source={source} needs {root}")
    if not config.model.clip.model_name:
        raise ConfigError(
            "model.clip.model_name: missing; name the encoder that made the tokens, and its hidden layer with "
            "model.clip.layer: an exported compressor records which tokens it takes"
        )
    if config.data.views > 1 and source == "features":
        raise ConfigError(
            f"data.views: got {config.data.views}; tokens cannot be cropped or mirrored as images can, so "
            "data.source=features has one view; encode the images, or write tokens of several crops into the files"
        )
    for key in OPTIONAL_KEYS:
        if getattr(config.data, key) is not None and key not in SOURCES[source].optional:
            readers = ", ".join(name for name, keys in SOURCES.items() if key in keys.optional)
            raise ConfigError(f"data.{key}: data.source={source} does not read it, only {readers}; leave it out")


def _check_model(model: ModelConfig) -> None:
    compressor, decoder = model.compressor, model.autoencoder
    if compressor.kind == "matryoshka":
        grids = matryoshka_grids(compressor)
        if compressor.output_grid_size not in grids:
            raise ConfigError(
                f"model.compressor.output_grid_size: got {compressor.output_grid_size}; a matryoshka compressor serves "
                f"{', '.join(map(str, grids))} (model.compressor.grids)"
            )
    if compressor.kind in OWN_DECODERS and decoder.kind != "conv":
        raise ConfigError(
            f"model.autoencoder.kind: got {decoder.kind!r}; {OWN_DECODERS[compressor.kind]} compressor has a decoder "
            "of its own, leave it at conv, or take model.compressor.kind=residual"
        )
    if compressor.kind in OWN_STARTS and compressor.init != "pca":
        raise ConfigError(
            f"model.compressor.init: got {compressor.init!r}; {OWN_STARTS[compressor.kind]}, leave it at pca, or take "
            "model.compressor.kind=residual"
        )
    if decoder.kind == "attention" and decoder.hidden_dim % decoder.num_heads:
        raise ConfigError(
            f"model.autoencoder.num_heads: got {decoder.num_heads}; model.autoencoder.hidden_dim="
            f"{decoder.hidden_dim} must be a multiple of it"
        )

"""What the values of the config may be, and the checks of a whole config."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from tokconv.config.sources import OPTIONAL_KEYS, SOURCES
from tokconv.config.tree import (
    KEYS,
    PRECISIONS,
    Config,
    LossWeightsConfig,
    ModelConfig,
    get,
    matryoshka_grids,
)
from tokconv.errors import ConfigError, suggest


@dataclass(frozen=True)
class Bound:
    """What a value may be, in words and as a check."""

    rule: str
    low: float | None = None
    high: float | None = None
    open_low: bool = False
    choices: tuple[Any, ...] = ()

    def allows(self, value: Any) -> bool:
        if self.choices:
            return value in self.choices
        if self.low is not None and (value < self.low or (self.open_low and value == self.low)):
            return False
        return self.high is None or value <= self.high


def _choice(*choices: Any, note: str = "") -> Bound:
    return Bound(f"allowed: {', '.join(str(c).lower() for c in choices)}{note}", choices=choices)


def _at_least(low: float) -> Bound:
    return Bound(f"must be at least {low:g}", low=low)


def _above(low: float) -> Bound:
    return Bound(f"must be greater than {low:g}", low=low, open_low=True)


LOSS_WEIGHTS = tuple(item.name for item in dataclasses.fields(LossWeightsConfig))
BOUNDS: dict[str, Bound] = {
    "model.clip.freeze": _choice(True, note=" (the tower is encoded once, never trained)"),
    "model.clip.precision": _choice(*PRECISIONS, "float16"),
    "model.compressor.kind": _choice("residual", "conv", "matryoshka"),
    "model.compressor.output_grid_size": _at_least(1),
    "model.compressor.num_layers": _at_least(0),
    "model.compressor.hidden_dim": _at_least(1),
    "model.compressor.init": _choice("pca", "pooling"),
    "model.compressor.norm": _choice("layer", "none"),
    "model.compressor.padding": _choice("zeros", "partial"),
    "model.autoencoder.kind": _choice("conv", "attention", "linear"),
    "model.autoencoder.num_heads": _at_least(1),
    "model.autoencoder.padding": _choice("zeros", "partial"),
    "model.autoencoder.num_layers": _at_least(0),
    "model.autoencoder.hidden_dim": _at_least(1),
    "model.critic.kind": _choice("grid", "token", "multiscale"),
    "model.critic.num_layers": _at_least(0),
    "model.critic.hidden_dim": _at_least(1),
    "loss.wgan.kind": _choice("wgan_gp", "wgan_gp_one_sided", "wgan_sn", "r3gan"),
    "loss.wgan.lambda_gp": _at_least(0),
    "loss.wgan.start": Bound("must be from 0 to 0.5", low=0, high=0.5),
    **{f"loss.weights.{name}": _at_least(0) for name in LOSS_WEIGHTS},
    "loss.reconstruction": _choice("mse", "cosine", "hybrid"),
    "loss.distribution": _choice("swd", "sinkhorn"),
    "training.epochs": _at_least(1),
    "training.batch_size": _at_least(1),
    "training.learning_rate": _above(0),
    "training.critic_learning_rate": _above(0),
    "training.n_critic": _at_least(1),
    "training.precision": _choice(*PRECISIONS),
    "training.grad_clip": _above(0),
    "training.seed": _at_least(0),
    "data.source": _choice(*SOURCES),
    "data.subset": _at_least(2),
    "data.val_fraction": Bound("must be greater than 0 and at most 0.5", low=0, high=0.5, open_low=True),
    "data.dtype": _choice("float16", "bfloat16", "int8"),
    "data.encode_batch_size": _at_least(1),
    "data.num_workers": _at_least(0),
}


def check_key(key: str) -> None:
    """Raise ConfigError, with the nearest name, when no such key exists."""
    if key not in KEYS:
        raise ConfigError(f"{key}: unknown; {suggest(key, KEYS)}")


def check_value(key: str, value: Any) -> None:
    """Raise ConfigError when a value of the right type is out of its bounds."""
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{key}: got {value!r}; must be a finite number")
    bound = BOUNDS.get(key)
    if value is not None and bound is not None and not bound.allows(value):
        raise ConfigError(f"{key}: got {value!r}; {bound.rule}")


def validate(config: Config) -> Config:
    """Check every bound; the config itself comes back.

    Raises:
        ConfigError: the key, the value and the rule.
    """
    for key in KEYS:
        check_value(key, get(config, key))
    if not any(dataclasses.asdict(config.loss.weights).values()):
        raise ConfigError("loss.weights: all are 0, nothing would be trained; raise ae or another one")
    _check_model(config.model)
    source = config.data.source
    if config.data.root is None and (root := SOURCES[source].root):
        raise ConfigError(f"data.root: missing; data.source={source} needs {root}")
    if not config.model.clip.model_name:
        raise ConfigError(
            "model.clip.model_name: missing; name the encoder that made the tokens, and its hidden layer with "
            "model.clip.layer: an exported compressor says what it is for"
        )
    for key in OPTIONAL_KEYS:
        if getattr(config.data, key) is not None and key not in SOURCES[source].optional:
            readers = ", ".join(name for name, keys in SOURCES.items() if key in keys.optional)
            raise ConfigError(f"data.{key}: data.source={source} does not read it, only {readers}; leave it out")
    return config


def _check_model(model: ModelConfig) -> None:
    compressor, decoder = model.compressor, model.autoencoder
    if compressor.kind == "matryoshka":
        grids = matryoshka_grids(compressor)
        if compressor.output_grid_size not in grids:
            raise ConfigError(
                f"model.compressor.output_grid_size: got {compressor.output_grid_size}; a matryoshka compressor serves "
                f"{', '.join(map(str, grids))} (model.compressor.grids)"
            )
        if decoder.kind != "conv":
            raise ConfigError(
                f"model.autoencoder.kind: got {decoder.kind!r}; a matryoshka compressor has a decoder of its own, "
                "leave it at conv"
            )
    if decoder.kind == "attention" and decoder.hidden_dim % decoder.num_heads:
        raise ConfigError(
            f"model.autoencoder.num_heads: got {decoder.num_heads}; model.autoencoder.hidden_dim="
            f"{decoder.hidden_dim} must be a multiple of it"
        )

"""The one config tree and its bounds.

The same dotted keys serve `tokconv train key=value`, a sweep spec's `base` and its `search`; `tokconv.overrides`
composes them. The names are the published ones, extended.
"""

from __future__ import annotations

import dataclasses
import math
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokconv.errors import ConfigError, suggest

PRECISIONS = ("auto", "float32", "bfloat16")
SOURCES = ("digits", "photographs", "folder", "imagenet", "coco", "huggingface")


@dataclass(kw_only=True)
class ClipConfig:
    """The frozen vision tower."""

    model_name: str = "openai/clip-vit-large-patch14-336"
    """A Hugging Face name or a local directory of a CLIP or SigLIP tower, `bundled:digits-tower`, or a short name:
    ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14-336, ViT-H/14."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face name; None is its main branch."""
    freeze: bool = True
    """Only true is possible: the tower is encoded once and never trained."""
    layer: int = -2
    """Hidden layer the tokens come from; -2 is what LLaVA reads. Layers after it are not computed."""
    precision: str = "auto"
    """auto (bfloat16 on CUDA, float32 elsewhere), float32, bfloat16 or float16."""


@dataclass(kw_only=True)
class CompressorConfig:
    """The network from G x G tokens to k x k tokens."""

    kind: str = "residual"
    """residual: one window projection plus a residual branch that starts at zero."""
    output_grid_size: int = 6
    """k, from 1 to the token grid; 6 turns 576 tokens into 36."""
    num_layers: int = 3
    """Blocks of the residual branch."""
    use_residual: bool = True
    """false leaves the window projection alone: a linear compressor."""
    hidden_dim: int = 128
    """Width of the residual branch."""
    init: str = "pca"
    """pca (moment-matched window PCA) or pooling: the closed-form compressor that training starts from."""


@dataclass(kw_only=True)
class AutoencoderConfig:
    """The decoder from k x k tokens back to G x G tokens."""

    kind: str = "conv"
    """conv: one transposed window projection plus a branch that starts at zero."""
    num_layers: int = 2
    hidden_dim: int = 128


@dataclass(kw_only=True)
class CriticConfig:
    """The WGAN-GP critic on k x k tokens."""

    kind: str = "grid"
    """grid: convolutions over the k x k grid."""
    num_layers: int = 2
    hidden_dim: int = 128


@dataclass(kw_only=True)
class ModelConfig:
    clip: ClipConfig = field(default_factory=ClipConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)


@dataclass(kw_only=True)
class WganConfig:
    lambda_gp: float = 10.0
    """Weight of the gradient penalty."""


@dataclass(kw_only=True)
class LossWeightsConfig:
    wgan: float = 1.0
    """0 trains without a critic: whether it helps is a result, not a belief."""
    ae: float = 1.0


@dataclass(kw_only=True)
class LossConfig:
    wgan: WganConfig = field(default_factory=WganConfig)
    weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    reconstruction: str = "mse"
    """mse, cosine, or hybrid (their sum), on standardised tokens."""


@dataclass(kw_only=True)
class TrainingConfig:
    epochs: int = 100
    batch_size: int = 32
    """Images a step over all workers together."""
    learning_rate: float = 1e-4
    """Peak, of compressor and decoder: it rises over the first tenth of the steps, then falls linearly to 2 %."""
    critic_learning_rate: float | None = None
    """None is the learning rate."""
    n_critic: int = 5
    """Critic updates a generator update."""
    precision: str = "auto"
    """auto (bfloat16 autocast on CUDA, float32 elsewhere), float32 or bfloat16; the penalty is always float32."""
    grad_clip: float = 1.0
    """Largest norm of the generator's gradient."""
    seed: int = 0


@dataclass(kw_only=True)
class DataConfig:
    source: str = "digits"
    """digits, photographs, folder, imagenet, coco or huggingface."""
    root: str | None = None
    """The folder of the images; for huggingface a data set's name on the hub or its directory."""
    name: str | None = None
    """Which part of a data set that has several: a Hugging Face configuration, or the year of a COCO folder (2017)."""
    image_column: str | None = None
    """Column of a Hugging Face data set; None is the only one of images."""
    label_column: str | None = None
    """Column of a Hugging Face data set; None is the only one of class labels, if there is one."""
    subset: int | None = None
    """Use this many images, chosen by a fixed seed; None is all."""
    val_fraction: float = 0.1
    """Held-out share, for sources that declare no split of their own."""
    store: str | None = None
    """Directory of the token store; None derives one below runs/stores from encoder and source."""
    dtype: str = "float16"
    """float16, bfloat16, or int8 with a scale per token."""
    encode_batch_size: int = 32
    num_workers: int = 2
    """Processes that read and decode images while encoding."""


@dataclass(kw_only=True)
class Config:
    """The whole tree.

    Example:
        >>> Config().model.compressor.output_grid_size
        6
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    data: DataConfig = field(default_factory=DataConfig)


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


BOUNDS: dict[str, Bound] = {
    "model.clip.freeze": _choice(True, note=" (the tower is encoded once, never trained)"),
    "model.clip.precision": _choice(*PRECISIONS, "float16"),
    "model.compressor.kind": _choice("residual"),
    "model.compressor.output_grid_size": _at_least(1),
    "model.compressor.num_layers": _at_least(0),
    "model.compressor.hidden_dim": _at_least(1),
    "model.compressor.init": _choice("pca", "pooling"),
    "model.autoencoder.kind": _choice("conv", note=" (an attention decoder does not exist yet)"),
    "model.autoencoder.num_layers": _at_least(0),
    "model.autoencoder.hidden_dim": _at_least(1),
    "model.critic.kind": _choice("grid"),
    "model.critic.num_layers": _at_least(0),
    "model.critic.hidden_dim": _at_least(1),
    "loss.wgan.lambda_gp": _at_least(0),
    "loss.weights.wgan": _at_least(0),
    "loss.weights.ae": _at_least(0),
    "loss.reconstruction": _choice("mse", "cosine", "hybrid"),
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
GROUPS = {"data": SOURCES}
NEED_ROOT = ("folder", "imagenet", "coco", "huggingface")


def _leaves(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, annotation in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(annotation):
            yield from _leaves(typing.cast(type, annotation), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", annotation


KEYS: dict[str, Any] = dict(_leaves(Config))
"""Every dotted key and its type."""


def get(config: Config, key: str) -> Any:
    """The value at a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


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
    if config.loss.weights.wgan == 0 and config.loss.weights.ae == 0:
        raise ConfigError("loss.weights: wgan and ae are both 0, nothing would be trained; raise one of them")
    source = config.data.source
    if source in NEED_ROOT and config.data.root is None:
        wanted = "a data set's name or directory" if source == "huggingface" else "the folder of the images"
        raise ConfigError(f"data.root: missing; data.source={source} needs {wanted}")
    for key in ("data.name", "data.image_column", "data.label_column"):
        readers = ("coco", "huggingface") if key == "data.name" else ("huggingface",)
        if get(config, key) is not None and source not in readers:
            raise ConfigError(f"{key}: data.source={source} does not read it, only {', '.join(readers)}; leave it out")
    return config


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON; `tokconv.overrides.from_dict` is the inverse."""
    return dataclasses.asdict(config)


def flatten(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dictionaries to dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            flat.update(flatten(value, f"{prefix}{name}."))
        else:
            flat[f"{prefix}{name}"] = value
    return flat

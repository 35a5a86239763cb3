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
    """residual: one window projection plus a residual branch that starts at zero; conv: strided convolutions that
    shrink the grid step by step; matryoshka: one compressor for every grid of `grids`, one of them drawn a batch."""
    output_grid_size: int = 6
    """k, from 1 to the token grid; 6 turns 576 tokens into 36."""
    num_layers: int = 3
    """Blocks of the branch; stages of a conv compressor."""
    use_residual: bool = True
    """false: of residual only the window projection, a linear compressor; of conv only the stages, without the window
    projection around them (the published design)."""
    hidden_dim: int = 128
    """Width of the branch or the stages."""
    init: str = "pca"
    """pca (moment-matched window PCA) or pooling: the closed-form compressor that training starts from."""
    norm: str = "layer"
    """Norm inside the blocks: layer or none."""
    padding: str = "zeros"
    """What convolutions see beyond the border: zeros, or partial (only the tokens that exist count)."""
    grids: str = "4-6-8-12"
    """The grids that a matryoshka compressor serves; its figures are those of output_grid_size, one of them."""


@dataclass(kw_only=True)
class AutoencoderConfig:
    """The decoder from k x k tokens back to G x G tokens."""

    kind: str = "conv"
    """conv: one transposed window projection plus a convolutional branch that starts at zero; attention: plus
    cross-attention that starts at zero; linear: the projection alone."""
    num_layers: int = 2
    hidden_dim: int = 128
    num_heads: int = 4
    """Of the attention; hidden_dim must be a multiple of it."""
    padding: str = "zeros"
    """As model.compressor.padding."""


@dataclass(kw_only=True)
class CriticConfig:
    """The critic on k x k tokens."""

    kind: str = "grid"
    """grid: convolutions over the k x k grid; token: an MLP on every token alone; multiscale: grid critics on the grid
    and on two coarser ones."""
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
    kind: str = "wgan_gp"
    """wgan_gp (two-sided penalty), wgan_gp_one_sided, wgan_sn (spectral norm instead of a penalty), or r3gan
    (relativistic, with zero-centred penalties)."""
    lambda_gp: float = 10.0
    """Weight of the gradient penalty; of r3gan's R1 and R2 (its gamma)."""
    start: float = 0.0
    """Share of the steps that train without the critic's word; then its weight rises to the full one over as many
    steps again. The critic itself learns from the first step on."""


@dataclass(kw_only=True)
class LossWeightsConfig:
    wgan: float = 1.0
    """Of the adversarial loss. 0 trains without a critic: whether it helps is a result, not a belief."""
    ae: float = 1.0
    """Of the reconstruction."""
    distribution: float = 0.0
    """Of the critic-free distance to real tokens, loss.distribution."""
    spatial: float = 0.0
    """Of the error between neighbours' differences."""
    perceptual: float = 0.0
    """Of the error of the similarities between an image's tokens."""
    window_cosine: float = 0.0
    """Of 1 - cosine of a compressed token with its window's tokens. Its optimum is average pooling: for comparison."""
    anchor: float = 0.0
    """Of the squared distance between a compressed token and its window's mean."""


@dataclass(kw_only=True)
class LossConfig:
    wgan: WganConfig = field(default_factory=WganConfig)
    weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    reconstruction: str = "mse"
    """mse, cosine, or hybrid (their sum), on standardised tokens."""
    distribution: str = "swd"
    """swd (sliced Wasserstein) or sinkhorn (needs geomloss); used where loss.weights.distribution is above 0."""


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
    if not any(dataclasses.asdict(config.loss.weights).values()):
        raise ConfigError("loss.weights: all are 0, nothing would be trained; raise ae or another one")
    _check_model(config.model)
    source = config.data.source
    if source in NEED_ROOT and config.data.root is None:
        wanted = "a data set's name or directory" if source == "huggingface" else "the folder of the images"
        raise ConfigError(f"data.root: missing; data.source={source} needs {wanted}")
    for key in ("data.name", "data.image_column", "data.label_column"):
        readers = ("coco", "huggingface") if key == "data.name" else ("huggingface",)
        if get(config, key) is not None and source not in readers:
            raise ConfigError(f"{key}: data.source={source} does not read it, only {', '.join(readers)}; leave it out")
    return config


def matryoshka_grids(compressor: CompressorConfig) -> tuple[int, ...]:
    """`grids` as numbers, ascending. Raises ConfigError unless it reads like 4-6-8-12."""
    parts = compressor.grids.split("-")
    if not all(part.isdecimal() and part.isascii() and 0 < int(part) < 10_000 for part in parts):
        raise ConfigError(
            f"model.compressor.grids: got {compressor.grids!r}; write side lengths with dashes between, as in 4-6-8-12"
        )
    return tuple(sorted({int(part) for part in parts}))


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

"""The one config tree; its bounds are in `tokconv.config.bounds`.

The same dotted keys serve `tokconv train key=value`, a sweep spec's `base` and its `search`; `tokconv.config.overrides`
composes them. The names are the published ones, extended.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from tokconv.config.sources import SOURCES
from tokconv.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")


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
    """digits, photographs, folder, imagenet, coco, huggingface, or features (tokens that are there already)."""
    root: str | None = None
    """The folder of the images; for huggingface a data set's name on the hub or its directory; for features a .npy or
    .safetensors file of tokens, or a folder of them."""
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
    """Directory of the token store, or its URL (s3://bucket/stores/name; file:///shared/stores/name): a store at a URL
    is read through a copy that every node makes once, in TOKCONV_CACHE or ~/.cache/tokconv. None derives a directory
    below runs/stores from encoder and source."""
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


GROUPS = {"data": tuple(SOURCES)}


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


def matryoshka_grids(compressor: CompressorConfig) -> tuple[int, ...]:
    """`grids` as numbers, ascending. Raises ConfigError unless it reads like 4-6-8-12."""
    parts = compressor.grids.split("-")
    if not all(part.isdecimal() and part.isascii() and 0 < int(part) < 10_000 for part in parts):
        raise ConfigError(
            f"model.compressor.grids: got {compressor.grids!r}; write side lengths with dashes between, as in 4-6-8-12"
        )
    return tuple(sorted({int(part) for part in parts}))


def to_dict(config: Config) -> dict[str, Any]:
    """Plain nested dictionaries, ready for JSON; `tokconv.config.overrides.from_dict` is the inverse."""
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

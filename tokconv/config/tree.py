"""The one config tree: every key with its default, its bounds and its meaning.

The same dotted keys (`tokconv.config.keys`) serve `tokconv train key=value`, a sweep spec's `base` and its `search`;
`tokconv.config.overrides` composes them. The published names are kept, others are added. A key's bounds are checked by
`tokconv.config.checks`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tokconv.config.bounds import Bound, above, at_least, key, one_of
from tokconv.config.sources import SOURCES
from tokconv.errors import ConfigError

PRECISIONS = ("auto", "float32", "bfloat16")
LARGEST_SEED = 2**32 - 1
"""torch's CPU generator takes 32 bits of a seed, and would draw the same for one that differs in higher ones only."""


@dataclass(kw_only=True)
class ClipConfig:
    """The frozen vision tower: CLIP, SigLIP, DINOv2 or DINOv3, in spite of the published name of these keys."""

    model_name: str = "openai/clip-vit-large-patch14-336"
    """A Hugging Face name or a local directory of any such vision tower, `bundled:digits-tower`, or a short name:
    ViT-B/32, ViT-B/16, ViT-L/14, ViT-L/14-336, ViT-H/14; DINOv2-S/14, -B/14, -L/14, -G/14, each also with -reg."""
    revision: str | None = None
    """Commit, tag or branch of a Hugging Face name; None is its main branch."""
    freeze: bool = key(True, one_of(True, note=" (the tower is encoded once, never trained)"))
    """Only true is possible."""
    layer: int = -2
    """Hidden layer the tokens come from; -2 is what LLaVA reads. Later layers are not computed."""
    image_size: int | None = key(None, at_least(1))
    """Pixels a side of the images that the tower sees, a multiple of its patches; positions are interpolated. None is
    the tower's own size; of DINOv2 and DINOv3 the largest of at most 24 x 24 tokens (336 for patches of 14) if smaller.
    """
    precision: str = key("auto", one_of(*PRECISIONS, "float16"))
    """auto is bfloat16 on CUDA and float32 elsewhere. A processor without instructions for bfloat16 (AVX512-BF16, AMX)
    imitates it, at a fraction of its speed in float32."""


@dataclass(kw_only=True)
class CompressorConfig:
    """The network from G x G tokens to k x k tokens."""

    kind: str = key("adaptive", one_of("residual", "conv", "matryoshka", "adaptive", "salient"))
    """residual: one window projection plus a residual branch that starts at zero; conv: strided convolutions that
    shrink the grid step by step; matryoshka: one compressor for every grid of `grids`, one of them drawn per batch;
    adaptive: the image's own low-rank factorisation plus branches that start at zero; salient: weighted means of
    windows, with learned weights that start high where tokens stand out."""
    output_grid_size: int = key(6, at_least(1))
    """k, from 1 to the token grid; 6 turns 576 tokens into 36."""
    num_layers: int = key(3, at_least(0))
    """Blocks of the branch; stages of a conv compressor."""
    use_residual: bool = True
    """false: residual is only its window projection, a linear compressor; conv is only its stages, without the window
    projection around them (the published design)."""
    hidden_dim: int = key(128, at_least(1))
    """Width of the branch or the stages."""
    init: str = key("pca", one_of("pca", "pooling"))
    """The closed-form compressor that training starts from: moment-matched window PCA, or average pooling."""
    norm: str = key("layer", one_of("layer", "none"))
    """Norm inside the blocks."""
    padding: str = key("zeros", one_of("zeros", "partial"))
    """What convolutions see beyond the border: zeros, or partial (only existing tokens count)."""
    whiten: bool = False
    """true: the branch writes in whitened coordinates, so that it learns directions of little variance as fast as
    others."""
    rank: int | None = key(None, at_least(0))
    """Directions that an adaptive compressor gives each image for itself; 0 is window PCA. null: the one of least error
    on a held-out tenth of the store's training images."""
    grids: str = "4-6-8-12"
    """The grids that a matryoshka compressor serves; its figures are those of output_grid_size, one of them."""


@dataclass(kw_only=True)
class AutoencoderConfig:
    """The decoder from k x k tokens back to G x G tokens."""

    kind: str = key("conv", one_of("conv", "attention", "linear"))
    """conv: one transposed window projection plus a convolutional branch that starts at zero; attention: plus
    cross-attention that starts at zero; linear: the projection alone."""
    num_layers: int = key(2, at_least(0))
    """Blocks of the branch; layers of the attention."""
    hidden_dim: int = key(128, at_least(1))
    """Width of the branch or the attention."""
    num_heads: int = key(4, at_least(1))
    """Heads of the attention; hidden_dim must be a multiple of it."""
    padding: str = key("zeros", one_of("zeros", "partial"))
    """The same as model.compressor.padding."""
    whiten: bool = False
    """true: the branch or the attention reads whitened compressed tokens."""


@dataclass(kw_only=True)
class CriticConfig:
    """The critic on k x k tokens."""

    kind: str = key("token", one_of("grid", "token", "multiscale", "both"))
    """grid: convolutions over the k x k grid; token: an MLP on every token alone; multiscale: grid critics on the grid
    and on two coarser ones; both: a token and a grid critic at once, each with half of the weight."""
    num_layers: int = key(2, at_least(0))
    """Blocks."""
    hidden_dim: int = key(128, at_least(1))
    """Width."""
    whiten: float = key(0.0, Bound("must be from 0 to 1", low=0, high=1))
    """How far the tokens that it sees are whitened by the covariance of real tokens: 0 not at all, 1 in full, so that
    directions of little variance count as much as others."""


@dataclass(kw_only=True)
class ModelConfig:
    clip: ClipConfig = field(default_factory=ClipConfig)
    compressor: CompressorConfig = field(default_factory=CompressorConfig)
    autoencoder: AutoencoderConfig = field(default_factory=AutoencoderConfig)
    critic: CriticConfig = field(default_factory=CriticConfig)


@dataclass(kw_only=True)
class WganConfig:
    """The adversarial loss."""

    kind: str = key("logistic", one_of("wgan_gp", "wgan_gp_one_sided", "wgan_sn", "r3gan", "logistic", "hinge"))
    """wgan_gp (two-sided penalty), wgan_gp_one_sided, wgan_sn (spectral norm instead of a penalty), r3gan
    (relativistic, with zero-centred penalties), logistic (non-saturating, with zero-centred penalties), or hinge (with
    spectral norm)."""
    lambda_gp: float = key(0.1, at_least(0))
    """Weight of the gradient penalty; for r3gan and logistic that of R1 and R2 (their gamma, 0.1 for single tokens)."""
    balance: str = key("gradient", one_of("gradient", "none"))
    """gradient: loss.weights.wgan is relative to all other losses: 1 lets a critic pull on the compressed tokens as
    hard as they do, at any grid, width and kind; none: it multiplies the loss itself, as published."""
    real_draws: int = key(1, at_least(1))
    """Real tokens of every window that a critic update sees."""
    start: float = key(0.0, Bound("must be from 0 to 0.5", low=0, high=0.5))
    """The adversarial loss is off for this share of the steps; then its weight rises to the full one over as many steps
    again. The critic itself learns from the first step on."""


@dataclass(kw_only=True)
class LossWeightsConfig:
    """The weight of every loss of compressor and decoder; 0 leaves a loss out."""

    wgan: float = key(0.0, at_least(0))
    """The adversarial loss. 0 trains without a critic: whether a critic helps is a result, not a belief."""
    ae: float = key(1.0, at_least(0))
    """The reconstruction, loss.reconstruction."""
    distribution: float = key(1.0, at_least(0))
    """The critic-free distance to real tokens, loss.distribution."""
    spatial: float = key(0.0, at_least(0))
    """The error of the differences between neighbouring tokens."""
    perceptual: float = key(0.0, at_least(0))
    """The error of the similarities between the tokens of an image."""
    window_cosine: float = key(0.0, at_least(0))
    """1 - cosine between a compressed token and its window's tokens. Its optimum is average pooling: for comparison."""
    anchor: float = key(0.0, at_least(0))
    """The squared distance between a compressed token and its window's mean."""
    vlm: float = key(0.0, at_least(0))
    """What a frozen vision-language model, loss.vlm.model, makes of compressed tokens: the Kullback-Leibler divergence
    of its next-token distribution from that with all tokens. Every step reads each image of the batch once."""


@dataclass(kw_only=True)
class VlmConfig:
    """The frozen vision-language model that teaches if loss.weights.vlm is above 0."""

    model: str | None = None
    """The directory of a model and its processor, as `tokconv answers` reads one."""
    prompts: str = "Describe the picture in one sentence."
    """A prompt, several with line breaks between them, or a text file (*.txt) with one per line."""
    prompts_per_step: int = key(4, at_least(1))
    """How many of them a step asks, at most. They are drawn for each step; an image is read once for all of them."""
    tokens: int = key(8, at_least(1))
    """Tokens of the model's own answer at which distributions are compared, at most."""


@dataclass(kw_only=True)
class LossConfig:
    wgan: WganConfig = field(default_factory=WganConfig)
    weights: LossWeightsConfig = field(default_factory=LossWeightsConfig)
    vlm: VlmConfig = field(default_factory=VlmConfig)
    reconstruction: str = key("mse", one_of("mse", "cosine", "hybrid"))
    """mse, cosine, or hybrid (their sum), on standardised tokens."""
    distribution: str = key("swd", one_of("swd", "sinkhorn"))
    """swd (sliced Wasserstein) or sinkhorn (needs geomloss); used if loss.weights.distribution is above 0."""


@dataclass(kw_only=True)
class TrainingConfig:
    epochs: int = key(10, at_least(1))
    """Passes over the training images."""
    batch_size: int = key(16, at_least(1))
    """Images per step, of all workers together."""
    learning_rate: float = key(2e-3, above(0))
    """For compressor and decoder: it falls linearly to 2 %, and the first tenth of the steps warms up to it, so that at
    most nine tenths of it are reached."""
    critic_learning_rate: float | None = key(None, above(0))
    """Peak for the critic; None is the learning rate."""
    critic_schedule: str = key("constant", one_of("constant", "linear"))
    """constant: the critic's learning rate stays at its peak after the first tenth of the steps; linear: it falls like
    that of compressor and decoder."""
    n_critic: int = key(2, at_least(1))
    """Critic updates per generator update."""
    precision: str = key("auto", one_of(*PRECISIONS))
    """auto (bfloat16 autocast on CUDA, float32 elsewhere), float32 or bfloat16; the penalty is always float32."""
    grad_clip: float = key(1.0, above(0))
    """Largest norm of the generator's gradient."""
    ema: float = key(0.0, Bound("must be from 0 to 0.99999", low=0, high=0.99999))
    """Decay of the averaged weights of compressor and decoder that are evaluated and exported (0.999 averages about
    1,000 steps); 0 takes the last ones."""
    seed: int = key(0, Bound(f"must be from 0 to {LARGEST_SEED}", low=0, high=LARGEST_SEED))
    """Fixes every random number: initial weights, order of the images, draws of a step."""


@dataclass(kw_only=True)
class DataConfig:
    source: str = key("digits", one_of(*SOURCES))
    """Where images come from; features: a file or folder of tokens instead of images."""
    root: str | None = None
    """The folder of the images; for huggingface a data set's name on the hub or its directory; for features a .npy,
    .safetensors or .pt file of tokens, or a folder of them."""
    name: str | None = None
    """Which part of a data set that has several: a Hugging Face configuration, or the year of a COCO folder (2017)."""
    image_column: str | None = None
    """Column of images in a Hugging Face data set; None is the only one."""
    label_column: str | None = None
    """Column of class labels in a Hugging Face data set; None is the only one, if there is one."""
    extra_tokens: int | None = key(None, at_least(0))
    """For features, how many tokens of each image come before its patches and are left out; None recognises a class
    token (577 = 1 + 24 x 24) and a class token with 4 registers (581 = 5 + 24 x 24)."""
    subset: int | None = key(None, at_least(2))
    """Use this many images, chosen by a fixed seed; None is all."""
    val_fraction: float = key(0.1, Bound("must be greater than 0 and at most 0.5", low=0, high=0.5, open_low=True))
    """Held-out share, for sources that declare no split of their own."""
    views: int = key(1, at_least(1))
    """Views of every training image in the store: the image as it is, and random crops of at least half of it, half of
    them mirrored. Held-out images have one view. More views help where images are few; the store and an epoch grow with
    them."""
    store: str | None = None
    """Directory of the token store, or its URL (s3://bucket/stores/name; file:///shared/stores/name): a store at a URL
    is read through a copy that every node makes once, in TOKCONV_CACHE or ~/.cache/tokconv. None derives a directory
    below runs/stores from encoder and source."""
    dtype: str = key("float16", one_of("float16", "bfloat16", "int8"))
    """float16, bfloat16, or int8 with a scale per token."""
    encode_batch_size: int = key(32, at_least(1))
    """Images per forward pass of the tower."""
    num_workers: int = key(2, at_least(0))
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


def matryoshka_grids(compressor: CompressorConfig) -> tuple[int, ...]:
    """Return `grids` as numbers, ascending. Raises ConfigError unless it reads like 4-6-8-12."""
    parts = compressor.grids.split("-")
    if not all(part.isdecimal() and part.isascii() and 0 < int(part) < 10_000 for part in parts):
        raise ConfigError(
            f"model.compressor.grids: got {compressor.grids!r}; write side lengths with dashes between, as in 4-6-8-12"
        )
    return tuple(sorted({int(part) for part in parts}))

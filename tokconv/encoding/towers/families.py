"""The families of vision towers that can encode images, and the short names of published towers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tokconv.system.registry import Registry


@dataclass(frozen=True)
class Family:
    """One architecture of vision towers, with the names of its parts in transformers."""

    name: str
    whole_type: str | None
    """`model_type` of a directory that includes the text tower; its `vision_config` describes the vision tower."""
    vision_type: str
    """`model_type` of a directory that holds the vision tower alone."""
    model_class: str
    processor_class: str
    defaults: Mapping[str, int]
    """The values of keys that its vision config leaves out."""
    crops: bool
    """Whether its image processor crops a square by default; otherwise it squeezes the image into one."""
    num_class_tokens: int
    last_norm: str
    """The layer norm after the last layer; `hidden_states` never include it."""
    asks_for_positions: bool = True
    """Whether it interpolates positions to another image size only on request; otherwise it does so by itself."""
    default_grid: int | None = None
    """The most tokens a side at the image size that is taken unless one is given; None for the tower's own size."""

    def num_special_tokens(self, vision: Mapping[str, Any]) -> int:
        """Return how many tokens come before the patch tokens, class and register tokens, of a vision config."""
        registers = vision.get(REGISTERS, self.defaults[REGISTERS]) if REGISTERS in self.defaults else 0
        return self.num_class_tokens + int(registers)


REGISTERS = "num_register_tokens"
CLIP, SIGLIP, DINOV2, DINOV2_WITH_REGISTERS, DINOV3 = (
    Family(
        name="CLIP",
        whole_type="clip",
        vision_type="clip_vision_model",
        model_class="CLIPVisionModel",
        processor_class="CLIPImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
        crops=True,
        num_class_tokens=1,
        last_norm="post_layernorm",
    ),
    # SigLIP 2 with a fixed resolution is the same architecture, and its config has the same `model_type`.
    Family(
        name="SigLIP",
        whole_type="siglip",
        vision_type="siglip_vision_model",
        model_class="SiglipVisionModel",
        processor_class="SiglipImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
        crops=False,
        num_class_tokens=0,
        last_norm="post_layernorm",
    ),
    # Published for 518 pixels, 37 x 37 tokens; 336 pixels make 24 x 24, as many as CLIP L/14-336.
    Family(
        name="DINOv2",
        whole_type=None,
        vision_type="dinov2",
        model_class="Dinov2Model",
        processor_class="BitImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 14},
        crops=True,
        num_class_tokens=1,
        last_norm="layernorm",
        asks_for_positions=False,
        default_grid=24,
    ),
    Family(
        name="DINOv2 with registers",
        whole_type=None,
        vision_type="dinov2_with_registers",
        model_class="Dinov2WithRegistersModel",
        processor_class="BitImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16, REGISTERS: 4},
        crops=True,
        num_class_tokens=1,
        last_norm="layernorm",
        asks_for_positions=False,
        default_grid=24,
    ),
    Family(
        name="DINOv3",
        whole_type=None,
        vision_type="dinov3_vit",
        model_class="DINOv3ViTModel",
        processor_class="DINOv3ViTImageProcessor",
        defaults={"hidden_size": 384, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16, REGISTERS: 0},
        crops=False,
        num_class_tokens=1,
        last_norm="norm",
        asks_for_positions=False,
        default_grid=24,
    ),
)
FAMILIES = Registry(
    "model_type",
    {
        kind: family
        for family in (CLIP, SIGLIP, DINOV2, DINOV2_WITH_REGISTERS, DINOV3)
        for kind in (family.whole_type, family.vision_type)
        if kind is not None
    },
)
"""By `model_type`, with and without the text tower."""
NAFLEX_TYPES = ("siglip2", "siglip2_vision_model")
"""SigLIP 2 whose number of tokens follows the shape of each image."""


@dataclass(frozen=True)
class PublishedShape:
    """The sizes of a published tower, so that its cost is known without its files."""

    image_size: int
    patch_size: int
    dim: int
    num_layers: int
    mlp_dim: int
    """A gated MLP has three matrices where others have two; it counts as one of 1.5 times its width."""
    family: Family = CLIP

    @property
    def num_special_tokens(self) -> int:
        return self.family.num_special_tokens({})


_DINOV2 = {"small": (384, 12, 1536), "base": (768, 12, 3072), "large": (1024, 24, 4096), "giant": (1536, 40, 6144)}
SHORT_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14-336": "openai/clip-vit-large-patch14-336",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
    **{f"DINOv2-{size[0].upper()}/14": f"facebook/dinov2-{size}" for size in _DINOV2},
    **{f"DINOv2-{size[0].upper()}/14-reg": f"facebook/dinov2-with-registers-{size}" for size in _DINOV2},
}
"""Short name in `model.clip.model_name` -> name on the hub. A directory of such a name is written `./ViT-B/32`."""

PUBLISHED_SHAPES = {
    "openai/clip-vit-base-patch32": PublishedShape(224, 32, 768, 12, 3072),
    "openai/clip-vit-base-patch16": PublishedShape(224, 16, 768, 12, 3072),
    "openai/clip-vit-large-patch14": PublishedShape(224, 14, 1024, 24, 4096),
    "openai/clip-vit-large-patch14-336": PublishedShape(336, 14, 1024, 24, 4096),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": PublishedShape(224, 14, 1280, 32, 5120),
    **{f"facebook/dinov2-{size}": PublishedShape(518, 14, *shape, DINOV2) for size, shape in _DINOV2.items()},
    **{
        f"facebook/dinov2-with-registers-{size}": PublishedShape(518, 14, *shape, DINOV2_WITH_REGISTERS)
        for size, shape in _DINOV2.items()
    },
}
"""The shapes of the towers in `SHORT_NAMES`."""

# Names that can only be meant as short ones, so that the hub is not asked: "ViT-L14", "vit_b_32", "ViT-L/14@336px",
# "dinov2_vits14" (its name on PyTorch's hub).
_SHORT_SHAPE = re.compile(r"(?i)(?:vit|dinov2[-_ /]?(?:vit)?)[-_ /]?[a-z](?:[-_ /]?\d+.*)?")


def layer_from_start(layer: int, num_layers: int) -> int:
    """Return the index in `hidden_states` of a layer that may be negative, counted from the end as -1, -2, ..."""
    return layer if layer >= 0 else num_layers + 1 + layer


def is_short(name: str) -> bool:
    """Return whether a name can only be meant as one of `SHORT_NAMES`, spelled correctly or not."""
    return _SHORT_SHAPE.fullmatch(name) is not None


def nearest_name(name: str) -> str | None:
    """Return the known name, short or full, that is closest to a misspelled one; None if no name is close."""
    if is_short(name):
        known = {_letters(text): text for text in SHORT_NAMES}
    elif "/" in name:
        known = {_letters(text): text for text in SHORT_NAMES.values()}
    else:  # an owner that is left out must not count against the rest of the name
        known = {_letters(text.split("/")[-1]): text for text in SHORT_NAMES.values()}
    close = difflib.get_close_matches(_letters(name), known, n=1, cutoff=0.85)
    return known[close[0]] if close and known[close[0]] != name else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""The families of vision towers that can encode images, and the short names of published towers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

from tokconv.system.registry import Registry

SHORT_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14-336": "openai/clip-vit-large-patch14-336",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""Short name in `model.clip.model_name` -> name on the hub. A directory of such a name is written `./ViT-B/32`."""

PUBLISHED_SHAPES = {
    "openai/clip-vit-base-patch32": (224, 32, 768, 12, 3072),
    "openai/clip-vit-base-patch16": (224, 16, 768, 12, 3072),
    "openai/clip-vit-large-patch14": (224, 14, 1024, 24, 4096),
    "openai/clip-vit-large-patch14-336": (336, 14, 1024, 24, 4096),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (224, 14, 1280, 32, 5120),
}
"""Image size, patch size, channels, layers and MLP width of the towers in `SHORT_NAMES`, so that their cost is known
without their files."""

# Names that can only be meant as short ones, so that the hub is not asked: "ViT-L14", "vit_b_32", "ViT-L/14@336px".
_SHORT_SHAPE = re.compile(r"(?i)vit[-_ /]?[a-z](?:[-_ /]?\d+.*)?")


@dataclass(frozen=True)
class Family:
    """One architecture of vision towers, with the names of its parts in transformers."""

    name: str
    whole_type: str
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
    normalises_last: bool
    """Whether `last_hidden_state` includes a layer norm after the last layer; `hidden_states` never do."""


CLIP, SIGLIP = (
    Family(
        name="CLIP",
        whole_type="clip",
        vision_type="clip_vision_model",
        model_class="CLIPVisionModel",
        processor_class="CLIPImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
        crops=True,
        num_class_tokens=1,
        normalises_last=False,
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
        normalises_last=True,
    ),
)
FAMILIES = Registry("model_type", {kind: f for f in (CLIP, SIGLIP) for kind in (f.whole_type, f.vision_type)})
"""By `model_type`, with and without the text tower."""
NAFLEX_TYPES = ("siglip2", "siglip2_vision_model")
"""SigLIP 2 whose number of tokens follows the shape of each image."""


def layer_from_start(layer: int, num_layers: int) -> int:
    """Return the index in `hidden_states` of a layer that may be negative, counted from the end as -1, -2, ..."""
    return layer if layer >= 0 else num_layers + 1 + layer


def is_short(name: str) -> bool:
    """Return whether a name can only be meant as one of `SHORT_NAMES`, spelled correctly or not."""
    return _SHORT_SHAPE.fullmatch(name) is not None


def nearest_name(name: str) -> str | None:
    """Return the known name, short or full, that is closest to a misspelled one; None if no name is close."""
    names = SHORT_NAMES if is_short(name) else SHORT_NAMES.values()
    known = {_letters(text): text for text in names}
    close = difflib.get_close_matches(_letters(name), known, n=1, cutoff=0.85)
    return known[close[0]] if close and known[close[0]] != name else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

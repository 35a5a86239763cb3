"""The families of vision towers that can be encoded, and short names of published ones."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass

SHORT_NAMES = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "ViT-L/14-336": "openai/clip-vit-large-patch14-336",
    "ViT-H/14": "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
}
"""What may be written in `model.clip.model_name` -> the name on the hub. A directory of such a name is `./ViT-B/32`."""

PUBLISHED_SHAPES = {
    "openai/clip-vit-base-patch32": (224, 32, 768, 12, 3072),
    "openai/clip-vit-base-patch16": (224, 16, 768, 12, 3072),
    "openai/clip-vit-large-patch14": (224, 14, 1024, 24, 4096),
    "openai/clip-vit-large-patch14-336": (336, 14, 1024, 24, 4096),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": (224, 14, 1280, 32, 5120),
}
"""Image size, patch size, channels, layers and MLP width of the towers of `SHORT_NAMES`: their cost can be told without
having them."""

# What can only be meant as one of them, so that the hub need not be asked: "ViT-L14", "vit_b_32", "ViT-L/14@336px".
_SHORT_SHAPE = re.compile(r"(?i)vit[-_ /]?[a-z](?:[-_ /]?\d+.*)?")


@dataclass(frozen=True)
class Family:
    """One architecture, under the names that transformers gives its parts."""

    name: str
    whole_type: str
    """`model_type` of a directory with the text tower, whose `vision_config` is the tower's."""
    vision_type: str
    """`model_type` of a directory with the vision tower alone."""
    config_class: str
    model_class: str
    processor_class: str
    defaults: Mapping[str, int]
    """What its vision config means when it leaves a key out."""
    crops: bool
    """Whether its image processor cuts a square out unless told otherwise; else it squeezes the image into one."""
    num_class_tokens: int
    normalises_last: bool
    """Whether `last_hidden_state` went through a layer norm after the last layer, which `hidden_states` never does."""


FAMILIES = (
    Family(
        name="CLIP",
        whole_type="clip",
        vision_type="clip_vision_model",
        config_class="CLIPVisionConfig",
        model_class="CLIPVisionModel",
        processor_class="CLIPImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32},
        crops=True,
        num_class_tokens=1,
        normalises_last=False,
    ),
    # SigLIP 2 of a fixed resolution is the same architecture and says so in its config.
    Family(
        name="SigLIP",
        whole_type="siglip",
        vision_type="siglip_vision_model",
        config_class="SiglipVisionConfig",
        model_class="SiglipVisionModel",
        processor_class="SiglipImageProcessor",
        defaults={"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 16},
        crops=False,
        num_class_tokens=0,
        normalises_last=True,
    ),
)
NAFLEX_TYPES = ("siglip2", "siglip2_vision_model")
"""SigLIP 2 with as many tokens as an image's shape asks for."""


def find_family(model_type: object) -> Family | None:
    """The family of a `model_type`, None when it cannot be encoded."""
    return next((f for f in FAMILIES if model_type in (f.whole_type, f.vision_type)), None)


def is_short(name: str) -> bool:
    """Whether a name can only be meant as one of `SHORT_NAMES`, rightly spelled or not."""
    return _SHORT_SHAPE.fullmatch(name) is not None


def nearest_name(name: str) -> str | None:
    """The known name, short or full, that another one may have been meant as; None when none is near."""
    names = SHORT_NAMES if is_short(name) else SHORT_NAMES.values()
    known = {_letters(text): text for text in names}
    close = difflib.get_close_matches(_letters(name), known, n=1, cutoff=0.85)
    return known[close[0]] if close and known[close[0]] != name else None


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())

"""Tiny towers for tests: local model directories with random weights, as a user would have them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import (
    BitImageProcessor,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    DINOv3ViTConfig,
    DINOv3ViTImageProcessor,
    DINOv3ViTModel,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
)


def _vision_config(
    image_size: int, patch_size: int, dim: int, layers: int, heads: int = 2, expansion: int = 2
) -> CLIPVisionConfig:
    return CLIPVisionConfig(
        hidden_size=dim,
        intermediate_size=expansion * dim,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        image_size=image_size,
        patch_size=patch_size,
        projection_dim=dim,
    )


def _write_processor(path: Path, image_size: int) -> None:
    size = {"height": image_size, "width": image_size}
    CLIPImageProcessor(size={"shortest_edge": image_size}, crop_size=size).save_pretrained(path)


def write_tower(
    path: Path, image_size: int = 16, patch_size: int = 4, dim: int = 32, layers: int = 3, seed: int = 0
) -> Path:
    """Write a directory of a CLIPVisionModel and its image processor; return its path."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPVisionModel(_vision_config(image_size, patch_size, dim, layers)).save_pretrained(path)
    _write_processor(path, image_size)
    return path


def write_vit_b_16(path: Path) -> Path:
    """Write a tower like openai/clip-vit-base-patch16 (14 x 14 tokens of 768 channels) with random weights, 340 MB."""
    config = _vision_config(224, 16, 768, 12, heads=12, expansion=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(config).save_pretrained(path)
    _write_processor(path, 224)
    return path


def write_full_clip(path: Path, image_size: int = 16, patch_size: int = 4, dim: int = 32, layers: int = 3) -> Path:
    """Write a directory of the whole CLIPModel, as it is published."""
    text = {"hidden_size": dim, "intermediate_size": dim, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = _vision_config(image_size, patch_size, dim, layers).to_dict()
    config = CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 64})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    _write_processor(path, image_size)
    return path


@dataclass(frozen=True)
class Architecture:
    """A published tower reduced to two heads and three layers, otherwise as published."""

    image_size: int
    patch_size: int
    head_dim: int
    expansion: float
    activation: str
    siglip: bool = False

    @property
    def token_grid(self) -> int:
        return self.image_size // self.patch_size

    @property
    def dim(self) -> int:
        return 2 * self.head_dim

    def sizes(self) -> dict[str, Any]:
        return {
            "hidden_size": self.dim,
            "intermediate_size": round(self.expansion * self.dim),
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "hidden_act": self.activation,
        }


ARCHITECTURES = {
    "openai/clip-vit-base-patch32": Architecture(224, 32, 64, 4, "quick_gelu"),
    "openai/clip-vit-base-patch16": Architecture(224, 16, 64, 4, "quick_gelu"),
    "openai/clip-vit-large-patch14": Architecture(224, 14, 64, 4, "quick_gelu"),
    "openai/clip-vit-large-patch14-336": Architecture(336, 14, 64, 4, "quick_gelu"),
    "laion/CLIP-ViT-H-14-laion2B-s32B-b79K": Architecture(224, 14, 80, 4, "gelu"),
    "google/siglip-base-patch16-224": Architecture(224, 16, 64, 4, "gelu_pytorch_tanh", siglip=True),
    "google/siglip-so400m-patch14-384": Architecture(384, 14, 72, 4304 / 1152, "gelu_pytorch_tanh", siglip=True),
    # SigLIP 2 with a fixed resolution: the same classes, with a much larger vocabulary in the text tower.
    "google/siglip2-base-patch16-256": Architecture(256, 16, 64, 4, "gelu_pytorch_tanh", siglip=True),
}


def write_architecture(path: Path, architecture: Architecture, whole: bool = True) -> Path:
    """Write a model as it is published, whole or its vision tower alone, with its processor; return its path."""
    vision = {**architecture.sizes(), "image_size": architecture.image_size, "patch_size": architecture.patch_size}
    text = {**architecture.sizes(), "num_hidden_layers": 1, "vocab_size": 64}
    model: Any
    with torch.random.fork_rng():
        torch.manual_seed(0)
        if architecture.siglip:
            model = SiglipModel(SiglipConfig(vision_config=vision, text_config=text))
        else:
            model = CLIPModel(CLIPConfig(vision_config=vision, text_config=text))
        # Freshly initialised layer norms are the identity up to scale, which would hide a superfluous one.
        for parameter in model.vision_model.post_layernorm.parameters():
            torch.nn.init.uniform_(parameter, 0.5, 2)
    (model if whole else model.vision_model).save_pretrained(path)
    if architecture.siglip:
        size = {"height": architecture.image_size, "width": architecture.image_size}
        SiglipImageProcessor(size=size).save_pretrained(path)
    else:
        _write_processor(path, architecture.image_size)
    return path


DINO = {
    "facebook/dinov2-small": (Dinov2Config, Dinov2Model, {}),
    "facebook/dinov2-giant": (Dinov2Config, Dinov2Model, {"use_swiglu_ffn": True}),
    "facebook/dinov2-with-registers-small": (Dinov2WithRegistersConfig, Dinov2WithRegistersModel, {}),
    "facebook/dinov3-vits16": (DINOv3ViTConfig, DINOv3ViTModel, {"num_register_tokens": 4, "intermediate_size": 64}),
    "facebook/dinov3-vits16plus": (DINOv3ViTConfig, DINOv3ViTModel, {"num_register_tokens": 4, "use_gated_mlp": True}),
}
"""The DINO families: config, model, and what differs from the family's defaults."""


def write_dino(path: Path, name: str, **sizes: Any) -> Path:
    """Write a DINO tower reduced to 32 channels and three layers, with its processor as published; return its path."""
    config_class, model_class, values = DINO[name]
    published = {"image_size": 224, "patch_size": 16} if "dinov3" in name else {"image_size": 518, "patch_size": 14}
    shape = {"hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 2, **published, **values, **sizes}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = model_class(config_class(**shape))
        # As in `write_architecture`; scales of layers and tokens that start at 0 would hide that one is left out.
        for parameter_name, parameter in model.named_parameters():
            if "norm" in parameter_name or "lambda" in parameter_name:
                torch.nn.init.uniform_(parameter, 0.5, 2)
            if parameter_name.endswith(("cls_token", "register_tokens", "position_embeddings")):
                torch.nn.init.normal_(parameter)
    model.save_pretrained(path)
    if "dinov3" in name:
        DINOv3ViTImageProcessor(size={"height": 224, "width": 224}).save_pretrained(path)
    else:
        # As published: 224 pixels out of 256, though the tower is for 518.
        crop = {"height": 224, "width": 224}
        BitImageProcessor(size={"shortest_edge": 256}, crop_size=crop, do_convert_rgb=True).save_pretrained(path)
    return path

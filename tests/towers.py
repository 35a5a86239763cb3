"""Tiny CLIP towers for tests: random weights, written as a user's local model directory would be."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPVisionConfig, CLIPVisionModel


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
    """A CLIPVisionModel directory with its image processor; the path comes back."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        CLIPVisionModel(_vision_config(image_size, patch_size, dim, layers)).save_pretrained(path)
    _write_processor(path, image_size)
    return path


def write_vit_b_16(path: Path) -> Path:
    """The architecture of openai/clip-vit-base-patch16 (14 x 14 tokens of 768 channels), random weights, 340 MB."""
    config = _vision_config(224, 16, 768, 12, heads=12, expansion=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPVisionModel(config).save_pretrained(path)
    _write_processor(path, 224)
    return path


def write_full_clip(path: Path, image_size: int = 16, patch_size: int = 4, dim: int = 32, layers: int = 3) -> Path:
    """A directory of the whole CLIPModel, as the published ones are."""
    text = {"hidden_size": dim, "intermediate_size": dim, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = _vision_config(image_size, patch_size, dim, layers).to_dict()
    config = CLIPConfig(vision_config=vision, text_config={**text, "vocab_size": 64})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        CLIPModel(config).save_pretrained(path)
    _write_processor(path, image_size)
    return path

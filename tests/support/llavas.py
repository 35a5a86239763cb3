"""Small LLaVAs with the bundled tower and otherwise random weights, and their processors."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    CLIPVisionModel,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

import tokconv

TOWER = Path(tokconv.__file__).parent / "encoding" / "towers" / "assets" / "digits-tower"
IMAGE = "<image>"
WORDS = ["user", ":", "assistant", "what", "is", "this", "?", "a", "b", "c", "d"]


def make_llava(
    *, layer: int = -2, width: int = 64, layers: int = 2, tower: Path = TOWER
) -> LlavaForConditionalGeneration:
    """Return a LLaVA whose tower has its real weights; projector and language model are random, with seed 0."""
    torch.manual_seed(0)
    vision = CLIPVisionConfig.from_pretrained(tower)
    text = LlamaConfig(
        vocab_size=64,
        hidden_size=width,
        intermediate_size=2 * width,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=3,
    )
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_id=4, vision_feature_layer=layer)
    model = LlavaForConditionalGeneration(config).eval()
    model.model.vision_tower.load_state_dict(CLIPVisionModel.from_pretrained(tower).state_dict())
    return model


def make_processor(tower: Path = TOWER) -> LlavaProcessor:
    """Return a processor with one token per word; an image is written `<image>`."""
    special = ("<unk>", "<s>", "</s>", "<pad>", IMAGE)
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate((*special, *WORDS))}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=[IMAGE],
        padding_side="left",
    )
    return LlavaProcessor(
        CLIPImageProcessor.from_pretrained(tower),
        tokenizer,
        patch_size=CLIPVisionConfig.from_pretrained(tower).patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
    )


def write_bundled_llava(folder: Path, *, noise: float = 0.0, strategy: str = "default", layer: int = -2) -> Path:
    """Write a LLaVA with the bundled tower, whose weights are disturbed by this share, and a random language model."""
    model = make_llava(width=32, layer=layer)
    model.config.vision_feature_select_strategy = strategy
    with torch.no_grad():
        for parameter in model.model.vision_tower.parameters():
            parameter += noise * parameter.std(correction=0) * torch.randn_like(parameter)
    model.save_pretrained(folder)
    processor = make_processor()
    processor.vision_feature_select_strategy = strategy
    processor.num_additional_image_tokens = 1 if strategy == "default" else 0
    processor.save_pretrained(folder)
    return folder

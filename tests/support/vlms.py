"""Small vision-language models with random weights, one per family that `attach` serves, and their processors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPVisionConfig,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    Gemma3ImageProcessor,
    Gemma3Processor,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextImageProcessor,
    LlavaNextProcessor,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    LlavaOnevisionImageProcessor,
    LlavaOnevisionProcessor,
    LlavaOnevisionVideoProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    SiglipImageProcessor,
    SiglipVisionConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

IMAGE_SIZE, PATCH_SIZE, TOKEN_GRID, DIM = 32, 4, 8, 32
SPECIAL = ("<unk>", "<s>", "</s>", "<pad>", "<image>", "<boi>", "<eoi>", "<video>", "<fake_token_around_image>")
WORDS = ("user", ":", "what", "is", "this", "?", "<global-img>")
IDS = {word: i for i, word in enumerate((*SPECIAL, *WORDS))}
PINPOINTS = [[32, 64], [64, 32], [64, 64], [32, 96]]
SQUARE = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}


@dataclass
class Vlm:
    """A model, its processor, and what a compressor must be for it."""

    model: Any
    processor: Any
    grid: int
    layer: int = -1
    placeholder: str = "<image>"
    """What stands for an image in a prompt."""
    packed: int = 1
    """How many tokens the model packs into one."""
    image_ids: int = field(default=IDS["<image>"])

    def prompt(self, images: list[list[Any]]) -> dict[str, torch.Tensor]:
        """Return a batch of prompts, each with one or more images."""
        text = ["user : " + f"{self.placeholder} " * len(own) + "what is this ?" for own in images]
        inputs = dict(self.processor(images=images, text=text, return_tensors="pt", padding=True))
        inputs.pop("labels", None)
        return inputs

    def counts(self, inputs: dict[str, torch.Tensor]) -> list[int]:
        found: list[int] = (inputs["input_ids"] == self.image_ids).sum(1).tolist()
        return found


def make_vlm(name: str, **more: Any) -> Vlm:
    """Return the model of a family, with seed 0 and norms that are not the identity; `more` goes to its maker."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        vlm = MAKERS[name](**more)
        vlm.model.eval()
        for path, parameter in vlm.model.named_parameters():
            if "norm" in path:
                torch.nn.init.uniform_(parameter, 0.5, 2)
            if "mm_input_projection" in path:  # Gemma 3 starts at 0
                torch.nn.init.normal_(parameter, std=0.2)
    return vlm


def _tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel(IDS, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=words,
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        additional_special_tokens=list(SPECIAL[4:]),
        extra_special_tokens={"image_token": "<image>", "boi_token": "<boi>", "eoi_token": "<eoi>"},
        padding_side="left",
    )


def _vision(**more: Any) -> dict[str, Any]:
    shape = {"image_size": IMAGE_SIZE, "patch_size": PATCH_SIZE, "hidden_size": DIM, "intermediate_size": 2 * DIM}
    return {**shape, "num_hidden_layers": 3, "num_attention_heads": 2, **more}


def _siglip() -> SiglipVisionConfig:
    return SiglipVisionConfig(**_vision(vision_use_head=False))


def _text(model_type: str, **more: Any) -> dict[str, Any]:
    heads = {"num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 2, "head_dim": 16}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 3}
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "max_position_embeddings": 2048}
    return {"model_type": model_type, **sizes, **heads, **ids, **more}


def _llava_next() -> Vlm:
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(**_vision()),
        text_config=_text("llama"),
        image_token_index=IDS["<image>"],
        image_grid_pinpoints=PINPOINTS,
    )
    images = LlavaNextImageProcessor(
        size={"shortest_edge": IMAGE_SIZE}, crop_size=SQUARE, image_grid_pinpoints=PINPOINTS
    )
    processor = LlavaNextProcessor(
        images,
        _tokenizer(),
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )
    return Vlm(LlavaNextForConditionalGeneration(config), processor, grid=3, layer=-2)


def _llava_onevision() -> Vlm:
    config = LlavaOnevisionConfig(
        vision_config=_siglip(),
        text_config=_text("qwen2"),
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        image_grid_pinpoints=PINPOINTS,
        vision_aspect_ratio="anyres_max_2",
    )
    processor = LlavaOnevisionProcessor(
        LlavaOnevisionImageProcessor(size=SQUARE, image_grid_pinpoints=PINPOINTS),
        _tokenizer(),
        LlavaOnevisionVideoProcessor(size=SQUARE),
        num_image_tokens=TOKEN_GRID**2,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_2",
    )
    return Vlm(LlavaOnevisionForConditionalGeneration(config), processor, grid=3)


def _paligemma() -> Vlm:
    config = PaliGemmaConfig(
        vision_config=_siglip(),
        text_config=_text("gemma"),
        image_token_index=IDS["<image>"],
        projection_dim=32,
        hidden_size=32,
        vocab_size=64,
    )
    images = SiglipImageProcessor(size=SQUARE, image_seq_length=TOKEN_GRID**2)
    return Vlm(PaliGemmaForConditionalGeneration(config), PaliGemmaProcessor(images, _tokenizer()), grid=3)


def _gemma3() -> Vlm:
    config = Gemma3Config(
        vision_config=_siglip(),
        text_config=_text("gemma3_text"),
        mm_tokens_per_image=16,
        image_token_index=IDS["<image>"],
        boi_token_index=IDS["<boi>"],
        eoi_token_index=IDS["<eoi>"],
    )
    processor = Gemma3Processor(Gemma3ImageProcessor(size=SQUARE), _tokenizer(), image_seq_length=16)
    return Vlm(Gemma3ForConditionalGeneration(config), processor, grid=3, placeholder="<boi>")


def _idefics3(
    config_class: Any = Idefics3Config, model_class: Any = Idefics3ForConditionalGeneration, *, scale_factor: int = 2
) -> Vlm:
    config = config_class(
        vision_config=_vision(),
        text_config=_text("llama"),
        scale_factor=scale_factor,
        image_token_id=IDS["<image>"],
        pad_token_id=3,
    )
    edge = {"longest_edge": IMAGE_SIZE}
    images = Idefics3ImageProcessor(size={"longest_edge": 2 * IMAGE_SIZE}, max_image_size=edge)
    processor = Idefics3Processor(images, _tokenizer(), image_seq_len=(TOKEN_GRID // scale_factor) ** 2)
    return Vlm(model_class(config), processor, grid=4, packed=scale_factor**2)


def _smolvlm(**more: Any) -> Vlm:
    """With Idefics3's processor, which writes the same prompt: SmolVLM's own one needs another package for videos."""
    return _idefics3(SmolVLMConfig, SmolVLMForConditionalGeneration, **more)


MAKERS: dict[str, Callable[..., Vlm]] = {
    "llava_next": _llava_next,
    "llava_onevision": _llava_onevision,
    "paligemma": _paligemma,
    "gemma3": _gemma3,
    "idefics3": _idefics3,
    "smolvlm": _smolvlm,
}

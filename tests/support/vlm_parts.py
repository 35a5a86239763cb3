"""A random vision tower, a random language model and images, which `tools/train_vlm.py` makes a LLaVA of."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tokconv.system.files import write_json

SIDE, PATCH = 56, 14
"""Of an image and of a patch, in px."""
SPECIAL = ("<unk>", "<|im_start|>", "<|im_end|>")
WORDS = ("user", "assistant", "Which", "of", "these", "does", "the", "picture", "show", "red", "blue", "or", "Answer")
PLACES = ("top", "middle", "bottom", "left", "center", "right")


def write_parts(folder: Path) -> None:
    """Write a tower, a language model, and images of two classes, in a split of their own."""
    write_tower(folder / "tower")
    write_language_model(folder / "language")
    for number in range(16):
        name, color = (("red", (220, 20, 10)), ("blue", (10, 30, 200)))[number % 2]
        path = folder / "images" / ("train" if number < 12 else "test") / name / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (60 + number, 64), color).save(path)


def write_tower(folder: Path) -> None:
    """Write a DINOv2 of two layers for larger images than it is used at."""
    torch.manual_seed(0)
    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    Dinov2Model(Dinov2Config(**size, image_size=84, patch_size=PATCH)).save_pretrained(folder)
    preprocessing = {"do_resize": True, "size": {"shortest_edge": SIDE}, "do_center_crop": True}
    crop = {"crop_size": {"height": SIDE, "width": SIDE}, "image_processor_type": "BitImageProcessor"}
    write_json(folder / "preprocessor_config.json", {**preprocessing, **crop})


def write_language_model(folder: Path, more_words: tuple[str, ...] = (), width: int = 16) -> None:
    """Write a Llama of one layer and its tokenizer, a token per word."""
    torch.manual_seed(0)
    vocabulary = {word: number for number, word in enumerate((*SPECIAL, *WORDS, *more_words))}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    named = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(folder)
    text = LlamaConfig(
        vocab_size=len(vocabulary), hidden_size=width, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        tie_word_embeddings=True, initializer_range=0.5,
    )  # fmt: skip
    LlamaForCausalLM(text).save_pretrained(folder)

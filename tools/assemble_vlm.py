"""A LLaVA of a vision tower and a language model, both directories of transformers: a tokconv tower, a Llama.

The result is transformers' own `LlavaForConditionalGeneration` with a `LlavaProcessor`, and needs nothing of tokconv.
Its projector is LLaVA-1.5's: linear, GELU, linear. It starts at noise; `tools/train_vlm.py` trains it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.families import FAMILIES
from tokconv.encoding.towers.spec import describe
from tokconv.system.files import atomic_path

IMAGE = "<image>"
TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n"
    "{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
"""SmolLM2's own template without its system message, which only costs tokens here."""


def assemble(
    tower: Path, language: Path, out: Path, *, layer: int, image_size: int | None = None, seed: int = 0
) -> Path:
    """Write the model and its processor, whole or not at all.

    Args:
        tower: a DINOv2 without registers, whose preprocessing crops a square.
        language: a Llama with its tokenizer.
        layer: the hidden layer of the tower that is read; negative numbers count from the last one.
        image_size: in px; None takes what `tokconv encode` would (24 x 24 tokens at most).
        seed: of the projector.

    Raises:
        DataError, ConfigError: as `tokconv.encoding.towers.spec.describe`.
    """
    import transformers
    from transformers import (
        AutoModel,
        AutoModelForCausalLM,
        AutoTokenizer,
        LlavaConfig,
        LlavaForConditionalGeneration,
        LlavaProcessor,
    )

    spec = describe(ClipConfig(model_name=str(tower), layer=layer, image_size=image_size))
    vision: Any = AutoModel.from_pretrained(tower, dtype=torch.float32)
    _set_image_size(vision, spec.image_size)
    llm: Any = AutoModelForCausalLM.from_pretrained(language, dtype=torch.float32)
    tokenizer: Any = AutoTokenizer.from_pretrained(language, padding_side="left")
    tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE]})
    _add_rows(llm, len(tokenizer))
    image_token = tokenizer.convert_tokens_to_ids(IMAGE)
    config = LlavaConfig(
        vision_config=vision.config,
        text_config=llm.config,
        image_token_id=image_token,
        vision_feature_layer=layer,
        vision_feature_select_strategy="default",
        tie_word_embeddings=llm.config.tie_word_embeddings,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: Any = LlavaForConditionalGeneration(config)
    model.model.vision_tower.load_state_dict(vision.state_dict())
    model.model.language_model.load_state_dict(llm.model.state_dict())
    model.lm_head.load_state_dict(llm.lm_head.state_dict())
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    family = FAMILIES[vision.config.model_type]
    preprocessing = {key: value for key, value in spec.preprocessing.items() if not key.endswith("_type")}
    processor = LlavaProcessor(
        getattr(transformers, family.processor_class)(**preprocessing),
        tokenizer,
        patch_size=vision.config.patch_size,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token=IMAGE,
        chat_template=TEMPLATE,
    )
    with atomic_path(out) as temporary:
        model.save_pretrained(temporary)
        processor.save_pretrained(temporary)
    return out


def width_of(embeddings: Tensor) -> float:
    """Return the root mean square of the entries of a language model's embeddings."""
    return float(embeddings.float().square().mean().sqrt())


def start_projector(projector: nn.Module, mean: Tensor, scale: Tensor, width: float, seed: int = 0) -> None:
    """Start a LLaVA projector where training is easiest: it reads standardised tokens, and writes vectors as long as
    the language model's own embeddings.

    Args:
        mean, scale: of the tower's tokens, [C] and [C] or a scalar.
        width: of the embeddings, as `width_of`.
    """
    first: Any = projector.get_submodule("linear_1")
    second: Any = projector.get_submodule("linear_2")
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        weight = torch.randn(first.weight.shape, generator=generator) / first.in_features**0.5 / scale
        first.weight.copy_(weight)
        first.bias.copy_(-(weight * mean).sum(1))
        # GELU of a standard normal has a root mean square of 0.65.
        spread = width / 0.65 / second.in_features**0.5
        second.weight.copy_(spread * torch.randn(second.weight.shape, generator=generator))
        second.bias.zero_()


def _set_image_size(vision: Any, image_size: int) -> None:
    """Interpolate the positions once, as the tower would at every image, so that it is a tower of this size."""
    patches = (image_size // vision.config.patch_size) ** 2
    with torch.no_grad():
        tokens = torch.zeros(1, 1 + patches, vision.config.hidden_size)
        positions = vision.embeddings.interpolate_pos_encoding(tokens, image_size, image_size)
    vision.embeddings.position_embeddings = nn.Parameter(positions.clone())
    vision.config.image_size = image_size


def _add_rows(llm: Any, count: int) -> None:
    """Give new tokens the mean embedding, whose logit is never the largest."""
    old = llm.get_input_embeddings().weight
    if count > len(old):
        mean, before = old.detach().mean(0), len(old)
        llm.resize_token_embeddings(count, mean_resizing=False)
        with torch.no_grad():
            llm.get_input_embeddings().weight[before:] = mean
            llm.get_output_embeddings().weight[before:] = mean

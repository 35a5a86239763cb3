"""Embeddings of images for vLLM, which then reads k * k tokens per image without knowing of a compressor.

vLLM accepts, in the place of an image, what the projector makes of it: "a tensor of shape (num_items, feature_size,
hidden_size of LM)", if it was started with `enable_mm_embeds=True`, `--enable-mm-embeds`
(https://docs.vllm.ai/en/latest/features/multimodal_inputs/, "Embedding Inputs"). A tensor of three dimensions counts as
embeddings, its first as items; for a LLaVA, each `<image>` of the prompt becomes as many placeholders as its item has
rows. So the server keeps the plain LLaVA, and tower, compressor and projector run beside it.

This was written to that contract and tested against it. It was not run with vLLM, which is no dependency of tokconv.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import PreTrainedModel, ProcessorMixin

from tokconv.errors import ConfigError
from tokconv.exports.integrations.attach import attach, family_of
from tokconv.exports.integrations.attachment import compressor_of
from tokconv.exports.integrations.llava import Llava
from tokconv.exports.integrations.pretrained import load_vlm


def load(name: str, compressor: str | Path) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load what `embed` needs of a LLaVA: tower, compressor and projector, without the language model's layers.

    Args:
        name: the LLaVA that vLLM serves, a folder or a name on the hub.
        compressor: an exported folder, [B, N, C] -> [B, k*k, C].

    Raises:
        DataError, ConfigError, CheckpointError: it cannot be loaded; as `attach`.

    Example:
        >>> model, processor = load("llava-hf/llava-1.5-7b-hf", "my-compressor")       # doctest: +SKIP
    """
    model, processor = load_vlm(name, visual_only=True)
    _check(model)
    attach(model, compressor, processor)
    return model, processor


@torch.inference_mode()
def embed(
    model: PreTrainedModel, processor: ProcessorMixin, images: Sequence[Image.Image], *, batch_size: int = 16
) -> Tensor:
    """Return the compressed and projected tokens of images, [items, k*k, hidden size of the language model].

    Args:
        model: a LLaVA with a compressor: from `load`, after `attach`, or loaded from a merged folder.
        processor: its processor, for the size and colours of images.
        images: one or more.
        batch_size: images that go through the tower at once, on the model's device.

    Returns:
        The items in the order of `images`, in the model's dtype, on the CPU; `{"image": embed(...)}` is the
        `multi_modal_data` of a prompt with as many `<image>`.

    Raises:
        ConfigError: another model than a LLaVA, one without a compressor, or no images.

    Example:
        >>> embeds = embed(model, processor, [image])                          # doctest: +SKIP
        >>> embeds.shape                                                       # doctest: +SKIP
        torch.Size([1, 144, 4096])
        >>> llm.generate({"prompt": prompt, "multi_modal_data": {"image": embeds}})    # doctest: +SKIP
    """
    _check(model)
    if compressor_of(model) is None:
        raise ConfigError("embed: this model has no compressor; attach one, or let vLLM embed the images itself")
    if not images:
        raise ConfigError("embed: no images; give at least one")
    parts: Any = processor
    features_of: Any = model.get_image_features
    found = []
    for start in range(0, len(images), batch_size):
        batch = [image.convert("RGB") for image in images[start : start + batch_size]]
        pixels = parts.image_processor(batch, return_tensors="pt")["pixel_values"]
        features = features_of(pixels.to(model.device, model.dtype)).pooler_output
        found.append(torch.stack(list(features)).cpu())
    return torch.cat(found)


def _check(model: PreTrainedModel) -> None:
    """Raise ConfigError for models whose embeddings are not k * k rows per image in vLLM."""
    if not isinstance(family := family_of(model), Llava) or type(family) is not Llava:
        raise ConfigError(
            f"embed: the model is a {type(model).__name__}; allowed: LlavaForConditionalGeneration, for which vLLM "
            "takes any number of tokens per image"
        )

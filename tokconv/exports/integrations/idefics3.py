"""Idefics3 and SmolVLM: k x k tokens of each tile, of which the connector packs s x s into one.

Their image processors fill every tile, so that its grid of tokens is fixed and square. The connector lays s x s
neighbours side by side before it projects them; the language model therefore reads (k / s) * (k / s) tokens per tile,
and k must be a multiple of s. The compressor goes before the tower's last layer norm, as in PaliGemma.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any, ClassVar

from transformers import (
    Idefics3ForConditionalGeneration,
    Idefics3Processor,
    PreTrainedModel,
    ProcessorMixin,
    SmolVLMForConditionalGeneration,
    SmolVLMProcessor,
)

from tokconv.errors import ConfigError
from tokconv.exports.integrations.family import (
    Reducer,
    VisionLanguageFamily,
    check_size,
    check_written,
    set_until_detached,
)


class Idefics3(VisionLanguageFamily):
    """Idefics3."""

    name = "Idefics3"
    model_class: ClassVar[type[PreTrainedModel]] = Idefics3ForConditionalGeneration
    processor_class: ClassVar[type[ProcessorMixin]] = Idefics3Processor
    host = "model.vision_model.post_layernorm"
    tower = "model.vision_model"
    tiles = True

    def layer_read(self, config: Any) -> int:
        return -1

    def check_model(self, config: Any, compressor: Reducer) -> None:
        # Their tower is SigLIP's with positions counted in fractions of the image, which tokconv encode does not read;
        # its tokens come from a file of features.
        check_size(config, compressor)
        if compressor.output_grid_size % config.scale_factor:
            raise ConfigError(
                f"attach: the compressor's output grid is {compressor.output_grid_size}, which is no multiple of "
                f"{config.scale_factor}: the connector packs {config.scale_factor} x {config.scale_factor} tokens into "
                "one; choose another model.compressor.output_grid_size"
            )

    def num_image_tokens(self, config: Any, compressor: Reducer) -> int:
        return compressor.num_output_tokens // int(config.scale_factor) ** 2

    def check_processor(self, config: Any, processor: Any) -> None:
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        check_written(processor, "image_seq_len", side**2)

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        # What the connector packs follows from what the processor wrote for all tokens.
        packed = compressor.token_grid**2 // processor.image_seq_len
        set_until_detached(undo, processor, "image_seq_len", compressor.num_output_tokens // packed)


class SmolVLM(Idefics3):
    """SmolVLM and SmolVLM 2, whose video frames are images of one tile."""

    name = "SmolVLM"
    model_class = SmolVLMForConditionalGeneration
    processor_class = SmolVLMProcessor

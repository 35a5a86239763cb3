"""Gemma 3: the compressor takes the place of the average pooling.

The SigLIP tower makes 64 x 64 tokens of an image, or of each of its crops, and the projector averages them to 16 x 16.
With a compressor it projects k x k tokens as they are. The compressor goes before the tower's last layer norm, as in
PaliGemma.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from torch import nn
from transformers import Gemma3ForConditionalGeneration, Gemma3Processor

from tokconv.exports.integrations.family import Reducer, VisionLanguageFamily, check_written, set_until_detached


class Gemma3(VisionLanguageFamily):
    """Gemma 3 with images."""

    name = "Gemma 3"
    tiles = True
    model_class = Gemma3ForConditionalGeneration
    processor_class = Gemma3Processor
    host = "model.vision_tower.post_layernorm"

    def layer_read(self, config: Any) -> int:
        return -1

    def change_model(self, model: Any, compressor: Reducer, undo: ExitStack) -> None:
        projector = model.model.multi_modal_projector
        set_until_detached(undo, projector, "patches_per_image", compressor.output_grid_size)
        set_until_detached(undo, projector, "avg_pool", nn.Identity())

    def check_processor(self, config: Any, processor: Any) -> None:
        check_written(processor, "image_seq_length", config.mm_tokens_per_image)

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        image, tokens = processor.tokenizer.image_token, compressor.num_output_tokens
        written = processor.full_image_sequence
        set_until_detached(
            undo, processor, "full_image_sequence", written.replace(image * processor.image_seq_length, image * tokens)
        )
        set_until_detached(undo, processor, "image_seq_length", tokens)

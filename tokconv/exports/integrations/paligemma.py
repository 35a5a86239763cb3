"""PaliGemma and PaliGemma 2: a SigLIP tower of a fixed size, a linear projector.

The projector reads the last layer after its layer norm, which acts on each token by itself. A store holds the tokens
before it, so the compressor goes before it too.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import PaliGemmaForConditionalGeneration, PaliGemmaProcessor

from tokconv.exports.integrations.family import Reducer, VisionLanguageFamily, check_written, set_until_detached


class PaliGemma(VisionLanguageFamily):
    """PaliGemma and PaliGemma 2."""

    name = "PaliGemma"
    model_class = PaliGemmaForConditionalGeneration
    processor_class = PaliGemmaProcessor
    host = "model.vision_tower.post_layernorm"
    # All of a prompt attends to all of it.
    causal = False

    def layer_read(self, config: Any) -> int:
        return -1

    def check_processor(self, config: Any, processor: Any) -> None:
        tokens = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        check_written(processor, "image_seq_length", tokens)

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        # The processor writes by its own number, and takes it from the image processor when it is loaded.
        for part in (processor, processor.image_processor):
            set_until_detached(undo, part, "image_seq_length", compressor.num_output_tokens)

"""LLaVA-OneVision: tiles as in LLaVA-NeXT, at most nine of them after joining. Images only.

Of an image with more tiles, the model scales the joined grid down. Several images in a prompt are not cut into tiles:
each is k * k tokens and a learned one. Videos are refused: the model averages each frame's tokens 2 x 2, which makes
grids of (k / 2) x (k / 2) out of compressed ones, for a language model that never saw them.
"""

from __future__ import annotations

from contextlib import ExitStack
from types import MethodType
from typing import Any, NoReturn

from transformers import LlavaOnevisionForConditionalGeneration, LlavaOnevisionProcessor

from tokconv.errors import ConfigError
from tokconv.exports.integrations.family import Reducer, check_written, set_until_detached
from tokconv.exports.integrations.llava import Llava
from tokconv.exports.integrations.tiles import join_tiles


class LlavaOnevision(Llava):
    """LLaVA-OneVision."""

    name = "LLaVA-OneVision"
    tiles = True
    model_class = LlavaOnevisionForConditionalGeneration
    processor_class = LlavaOnevisionProcessor

    def change_model(self, model: Any, compressor: Reducer, undo: ExitStack) -> None:
        super().change_model(model, compressor, undo)
        join_tiles(model.model, compressor, undo)
        model.model.get_video_features = MethodType(_refuse_videos, model.model)
        undo.callback(delattr, model.model, "get_video_features")

    def check_processor(self, config: Any, processor: Any) -> None:
        self.check_sections(config, processor)
        check_written(
            processor, "num_image_tokens", (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        )

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        set_until_detached(undo, processor, "num_image_tokens", compressor.num_output_tokens)


def _refuse_videos(self: Any, *arguments: Any, **options: Any) -> NoReturn:
    raise ConfigError(
        "videos: the model averages each frame's tokens 2 x 2, and the attached compressor has taken their place; "
        "detach it for videos"
    )

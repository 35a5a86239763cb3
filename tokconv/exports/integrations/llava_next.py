"""LLaVA-NeXT (LLaVA-1.6): as LLaVA, with tiles, each of which becomes k x k tokens."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from transformers import LlavaNextForConditionalGeneration, LlavaNextProcessor

from tokconv.errors import ConfigError
from tokconv.exports.integrations.family import Reducer, set_until_detached
from tokconv.exports.integrations.llava import Llava
from tokconv.exports.integrations.tiles import join_tiles


class LlavaNext(Llava):
    """LLaVA-NeXT."""

    name = "LLaVA-NeXT"
    tiles = True
    model_class = LlavaNextForConditionalGeneration
    processor_class = LlavaNextProcessor

    def check_model(self, config: Any, compressor: Reducer) -> None:
        super().check_model(config, compressor)
        _patch_size(config.vision_config.image_size, compressor.output_grid_size)

    def change_model(self, model: Any, compressor: Reducer, undo: ExitStack) -> None:
        super().change_model(model, compressor, undo)
        join_tiles(model.model, compressor, undo)

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        tile = compressor.token_grid * processor.patch_size
        set_until_detached(undo, processor, "patch_size", _patch_size(tile, compressor.output_grid_size))


def _patch_size(tile: int, grid: int) -> int:
    """Return the size of patches of which the processor counts grid x grid in a tile, by `tile // size`.

    Raises:
        ConfigError: no whole number does, which happens only for grids near the tower's own.
    """
    size = tile // grid
    if tile // size != grid:
        raise ConfigError(
            f"attach: the compressor's output grid is {grid}; LLaVA-NeXT's processor counts tokens by a whole patch "
            f"size, and none cuts {tile} pixels into {grid}; choose model.compressor.output_grid_size="
            f"{tile // (size + 1)} or another"
        )
    return size

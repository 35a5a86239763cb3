"""Images that are cut into tiles (LLaVA-NeXT's "any resolution"), each of which becomes k x k tokens.

The tower sees the whole image, scaled down, and its tiles one by one. The model joins the tiles' grids to one grid,
cuts off the rows or columns of padding, and ends each row with a learned token. It does the same with compressed grids:
the padding is cut off in whole cells, and the processor counts by the same rule.
"""

from __future__ import annotations

from contextlib import ExitStack
from fractions import Fraction
from types import MethodType, SimpleNamespace
from typing import Any

from tokconv.exports.integrations.family import Reducer


def join_tiles(model: Any, compressor: Reducer, undo: ExitStack) -> None:
    """Make a model join tiles of k x k tokens; `model` is the one that has `pack_image_features`."""
    # A bound method, not a closure, so that a deep copy of the model joins its own.
    model.pack_image_features = MethodType(_pack_compressed, model)
    model.compressed_grid = compressor.output_grid_size
    undo.callback(delattr, model, "pack_image_features")
    undo.callback(delattr, model, "compressed_grid")


def _pack_compressed(self: Any, *arguments: Any, **options: Any) -> Any:
    """Call transformers' own method, which reads the grid from a config, with a config of the compressed grid.

    The method divides the tile's pixels by the patch size; only a fraction gives every k.
    """
    tile = self.config.vision_config.image_size
    vision = SimpleNamespace(image_size=tile, patch_size=Fraction(tile, self.compressed_grid))
    config = SimpleNamespace(vision_config=vision, image_grid_pinpoints=self.config.image_grid_pinpoints)
    return type(self).pack_image_features(SimpleNamespace(config=config), *arguments, **options)

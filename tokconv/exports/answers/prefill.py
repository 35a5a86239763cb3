"""A question about an image, and what a vision-language model keeps of having read it.

Shapes: b questions, D the width of the language model.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

from torch import Tensor


@dataclass(frozen=True)
class Prompt:
    """A question about one image of this size, as the processor takes both."""

    text: str
    size: tuple[int, int]


@dataclass
class Prefill:
    """A prompt that has been read: the last hidden states [b, D] and the keys and values of all layers."""

    hidden: Tensor
    cache: Any
    num_visual: int
    """Visual tokens of one question that the language model has read."""

    @property
    def cache_bytes(self) -> int:
        """The memory of keys and values for one question."""
        layers = self.cache.layers
        return sum(kept.nbytes for layer in layers for kept in (layer.keys, layer.values)) // len(self.hidden)

    def branch(self) -> Prefill:
        """Return a prefill that can be read on without changing this one; both share what they hold, and its graph."""
        cache = copy.copy(self.cache)
        # Layers append by making new tensors.
        cache.layers = [copy.copy(layer) for layer in cache.layers]
        return Prefill(self.hidden, cache, self.num_visual)

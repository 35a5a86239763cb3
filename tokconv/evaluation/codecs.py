"""What is evaluated: a codec, which compresses and reconstructs tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Codec = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all in token units."""


@dataclass(frozen=True)
class ImageCodec:
    """A codec that must also know which images of the store it is given: it draws at random for each of them, or reads
    what is stored for them.

    run: (tokens [B, N, C], images [B] int64 on the CPU) -> as `Codec`; images are indices in the store.
    """

    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


def run_codec(codec: Codec | ImageCodec, tokens_BNC: Tensor, images_B: Tensor) -> tuple[Tensor, Tensor]:
    """Run either kind on the tokens of these images."""
    return codec.run(tokens_BNC, images_B) if isinstance(codec, ImageCodec) else codec(tokens_BNC)

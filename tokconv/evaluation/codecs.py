"""What is evaluated: a codec, which compresses and reconstructs tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder

Codec = Callable[[Tensor], tuple[Tensor, Tensor]]
"""[B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all in token units."""


@dataclass(frozen=True)
class ImageCodec:
    """A codec that must also know which images of the store it is given: it draws at random for each of them, or reads
    what is stored for them.

    run: (tokens [B, N, C], images [B] int64 on the CPU) -> as `Codec`; images are indices in the store.
    """

    run: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class NetworkCodec:
    """A codec of a compressor and its decoder; they are in eval mode while they run."""

    compressor: Compressor
    decoder: Decoder

    def __call__(self, tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        compressed = self.compress(tokens_BNC)
        training = self.decoder.training
        self.decoder.eval()
        reconstructed = self.decoder(compressed)
        self.decoder.train(training)
        return compressed, reconstructed

    def compress(self, tokens_BNC: Tensor) -> Tensor:
        """Return the compressed tokens alone, [B, K, C]."""
        training = self.compressor.training
        self.compressor.eval()
        compressed = self.compressor(tokens_BNC)
        self.compressor.train(training)
        return compressed


def codec_of(compressor: Compressor, decoder: Decoder) -> NetworkCodec:
    """Return a compressor and its decoder as one codec."""
    return NetworkCodec(compressor, decoder)


def run_codec(codec: Codec | ImageCodec, tokens_BNC: Tensor, images_B: Tensor) -> tuple[Tensor, Tensor]:
    """Run either kind on the tokens of these images; the result is float32."""
    compressed, reconstructed = codec.run(tokens_BNC, images_B) if isinstance(codec, ImageCodec) else codec(tokens_BNC)
    return compressed.float(), reconstructed.float()


def compress_only(codec: Codec | ImageCodec, tokens_BNC: Tensor, images_B: Tensor) -> Tensor:
    """Return the compressed tokens of these images in float32; networks do not decode them."""
    if isinstance(codec, NetworkCodec):
        return codec.compress(tokens_BNC).float()
    return run_codec(codec, tokens_BNC, images_B)[0]

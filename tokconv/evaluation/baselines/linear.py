"""Codecs of windows whose compressor and decoder are both affine: those that can fill the networks' projections."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.windows import Windows

SHUFFLE_SEED = 0


@dataclass(frozen=True)
class LinearCodec:
    """An affine compressor and an affine decoder of windows, on standardised tokens.

    encode_weight [C, W*C], encode_bias [C]; decode_weight [W*C, C], decode_bias [W*C]; float32.

    The decoder is fitted on whole windows. Where they overlap (k does not divide G) their predictions are averaged.
    """

    encode_weight: Tensor
    encode_bias: Tensor
    decode_weight: Tensor
    decode_bias: Tensor

    def fill(self, compressor: Compressor, decoder: Decoder) -> None:
        """Make this codec the window projections of a compressor and a decoder of the same grid and width."""
        assert compressor.projection is not None
        assert decoder.projection is not None
        compressor.projection.fill(self.encode_weight, self.encode_bias)
        decoder.projection.fill(self.decode_weight, self.decode_bias)

    def compress(self, standardised_BNC: Tensor, windows: Windows) -> Tensor:
        """Compress tokens, [B, N, C] -> [B, K, C]."""
        return F.linear(windows.split(standardised_BNC).flatten(2), self.encode_weight, self.encode_bias)

    def decode(self, cells_BKC: Tensor, windows: Windows) -> Tensor:
        """Reconstruct tokens, [B, K, C] -> [B, N, C]."""
        return decode_windows(cells_BKC, windows, self.decode_weight, self.decode_bias)


def decode_windows(cells_BKC: Tensor, windows: Windows, weight: Tensor, bias: Tensor) -> Tensor:
    """Map cells [B, K, C] to tokens [B, N, C], by an affine map from a cell to its window, [W*C, C] and [W*C]."""
    return windows.join(F.linear(cells_BKC, weight, bias).unflatten(2, (windows.window_size, -1)))


def averaging(dim: int, window_size: int) -> Tensor:
    """Return the weight of `pooling`, [C, W*C] float32: each cell is its window's mean."""
    return torch.eye(dim).repeat(1, window_size) / window_size


def shuffling(dim: int, window_size: int) -> Tensor:
    """Return the weight of `pixel_shuffle`, [C, W*C] float32: space-to-depth of the window, then a linear layer.

    The layer is a random projection with orthonormal rows and a fixed seed: a layer before any training. Trained for
    the least squared error, it would become window PCA, which is a baseline of its own.
    """
    generator = torch.Generator().manual_seed(SHUFFLE_SEED)
    return torch.linalg.qr(torch.randn(dim * window_size, dim, generator=generator)).Q.T.contiguous()


def affine_codec(encode: Tensor, decode: Tensor, *, center: Tensor, token_mean: Tensor) -> LinearCodec:
    """Return the codec cells = token_mean + encode (window - center), window = center + decode (cells - token_mean)."""
    return LinearCodec(
        encode.float().contiguous(),
        (token_mean - encode @ center).float(),
        decode.float().contiguous(),
        (center - decode @ token_mean).float(),
    )

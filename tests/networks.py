"""Networks that are nothing but their window projections."""

from __future__ import annotations

from tokconv.models.compressor import Compressor, ResidualCompressor
from tokconv.models.decoder import Decoder
from tokconv.store import TokenStore


def linear_networks(store: TokenStore, output_grid: int) -> tuple[Compressor, Decoder]:
    """A compressor and a decoder without branches, for `LinearCodec.fill`."""
    sizes = (store.token_grid, store.dim, output_grid)
    compressor = ResidualCompressor(*sizes, use_residual=False, mean=store.mean, scale=store.scale)
    return compressor, Decoder(*sizes, mean=store.mean, scale=store.scale)

"""Small networks: overrides for a run that takes seconds, and networks that are only window projections."""

from __future__ import annotations

from tokconv.models.blocks import Standardise
from tokconv.models.compressor import Compressor, ResidualCompressor
from tokconv.models.decoder import Decoder, LinearDecoder
from tokconv.store.reader import TokenStore

PUBLISHED = ("recipe=published", "loss.wgan.balance=gradient")
"""The published networks, whose start takes no time, with a critic that works."""
SMALL = [
    *PUBLISHED,
    "model.compressor.output_grid_size=3",
    "model.compressor.hidden_dim=8",
    "model.compressor.num_layers=1",
    "model.autoencoder.hidden_dim=8",
    "model.autoencoder.num_layers=1",
    "model.critic.hidden_dim=8",
    "model.critic.num_layers=1",
    "training.batch_size=8",
    "training.n_critic=2",
    "training.learning_rate=1e-3",
]


def linear_networks(store: TokenStore, output_grid: int) -> tuple[Compressor, Decoder]:
    """Return a compressor and a decoder without branches, for `LinearCodec.fill`."""
    sizes = (store.token_grid, store.dim, output_grid)
    compressor, decoder = ResidualCompressor(*sizes, use_residual=False), LinearDecoder(*sizes)
    for network in (compressor, decoder):
        network.standardise = Standardise(store.dim, store.mean, store.scale)
    return compressor, decoder

"""Decoders: k x k tokens back to G x G tokens; they measure what a compressor kept."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokconv.models.blocks import channel_map, make_norm, zeroed
from tokconv.models.compressor import Branch
from tokconv.models.network import FirstLayer, WindowNetwork, WindowProjection


class Decoder(WindowNetwork):
    """The base of every decoder; `tokconv.models.registry` builds one by its kind.

    Args: as `tokconv.models.network.WindowNetwork`.
    """

    def forward(self, compressed_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B, N, C], both in token units."""
        return self.standardise.restore(self.decode(self.standardise(compressed_BKC)))

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B, N, C], both standardised."""
        raise NotImplementedError

    def unfold(self, windows_BKD: Tensor) -> Tensor:
        """[B, K, W*C] -> [B, N, C]; overlapping windows are averaged."""
        return self.windows.join(windows_BKD.unflatten(2, (self.windows.window_size, -1)))


class LinearDecoder(Decoder):
    """A transposed window projection: the linear decoder, and the base of the kinds that add a branch to it.

    Args: as `Decoder`.
    """

    projection: WindowProjection

    def __init__(self, token_grid: int, dim: int, output_grid_size: int) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        self.projection = WindowProjection(dim, self.windows.window_size * dim)

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        return self.unfold(self.projection(standardised_BKC))


class ConvDecoder(LinearDecoder):
    """Transposed window projection + residual branch over the k x k grid that starts at zero.

    Args: as `Decoder`, and num_layers, hidden_dim, norm, padding as `ResidualCompressor`, and
        whiten: the branch reads whitened cells, in which directions of little variance are as large as others.
    """

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        num_layers: int = 2,
        hidden_dim: int = 128,
        norm: str = "layer",
        padding: str = "zeros",
        whiten: bool = False,
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        self.whiten = channel_map(dim, whiten)
        window_dim, cells = self.windows.window_size * dim, self.windows.num_cells
        self.branch = Branch(dim, hidden_dim, window_dim, cells, num_layers, norm=norm, padding=padding)

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        return self.unfold(self.projection(standardised_BKC) + self.branch(self.whiten(standardised_BKC)))


class AttentionDecoder(LinearDecoder):
    """Transposed window projection + cross-attention of G*G learned queries to the k*k tokens, starting at zero.

    Every output token may read every compressed one (Jaegle et al. 2022, arXiv:2107.14795, section 3.2), where the
    convolutional decoder reads its neighbourhood.

    Args: as `Decoder`, and
        num_layers: pairs of cross-attention and MLP.
        hidden_dim: width, a multiple of num_heads.
        num_heads: of the attention.
        whiten: the attention reads whitened cells, see `ConvDecoder`.
    """

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        num_layers: int = 2,
        hidden_dim: int = 128,
        num_heads: int = 4,
        norm: str = "layer",
        whiten: bool = False,
    ) -> None:
        super().__init__(token_grid, dim, output_grid_size)
        self.whiten = channel_map(dim, whiten)
        self.enter = FirstLayer(dim, hidden_dim)
        self.position = nn.Parameter(0.02 * torch.randn(self.windows.num_cells, hidden_dim))
        self.queries = nn.Parameter(0.02 * torch.randn(token_grid**2, hidden_dim))
        self.layers = nn.ModuleList(CrossAttention(hidden_dim, num_heads, norm) for _ in range(num_layers))
        self.leave = zeroed(nn.Linear(hidden_dim, dim))

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        memory = self.enter(self.whiten(standardised_BKC)) + self.position
        hidden = self.queries.expand(len(memory), -1, -1)
        for layer in self.layers:
            hidden = layer(hidden, memory)
        return self.unfold(self.projection(standardised_BKC)) + self.leave(hidden)


class CrossAttention(nn.Module):
    """Attention from N queries to K tokens, then an MLP; both follow a norm and have a skip.

    Args:
        dim: channels, a multiple of num_heads.
    """

    def __init__(self, dim: int, num_heads: int, norm: str) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm_query, self.norm_memory = make_norm(norm, dim), make_norm(norm, dim)
        self.norm_mlp = make_norm(norm, dim)
        self.query, self.key_value = nn.Linear(dim, dim), nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, dim)
        self.widen, self.narrow = nn.Linear(dim, 2 * dim), nn.Linear(2 * dim, dim)

    def forward(self, hidden_BNC: Tensor, memory_BKC: Tensor) -> Tensor:
        query = self._heads(self.query(self.norm_query(hidden_BNC)))
        key, value = (self._heads(part) for part in self.key_value(self.norm_memory(memory_BKC)).chunk(2, dim=-1))
        read = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        hidden = hidden_BNC + self.out(read)
        return hidden + self.narrow(F.gelu(self.widen(self.norm_mlp(hidden))))

    def _heads(self, tokens_BNC: Tensor) -> Tensor:
        return tokens_BNC.unflatten(2, (self.num_heads, -1)).transpose(1, 2)

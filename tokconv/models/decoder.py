"""The decoder: k x k tokens back to G x G tokens; it measures what the compressor kept."""

from __future__ import annotations

from torch import Tensor, nn

from tokconv.grid import Windows
from tokconv.models.blocks import Standardise
from tokconv.models.compressor import Branch


class Decoder(nn.Module):
    """Transposed window projection + residual branch that starts at zero; the mirror of `Compressor`.

    Args: as `Compressor`.
    """

    def __init__(
        self,
        token_grid: int,
        dim: int,
        output_grid_size: int,
        *,
        num_layers: int = 2,
        hidden_dim: int = 128,
        mean: Tensor | None = None,
        scale: float = 1.0,
    ) -> None:
        super().__init__()
        self.windows = Windows(token_grid, output_grid_size)
        self.standardise = Standardise(dim, mean, scale)
        window_dim = self.windows.window_size * dim
        self.projection = nn.Linear(dim, window_dim)
        self.branch = Branch(dim, hidden_dim, window_dim, self.windows.num_cells, num_layers)

    def forward(self, compressed_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B, N, C], both in token units."""
        return self.standardise.restore(self.decode(self.standardise(compressed_BKC)))

    def decode(self, standardised_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B, N, C], both standardised."""
        windows = self.projection(standardised_BKC) + self.branch(standardised_BKC)
        return self.windows.join(windows.unflatten(2, (self.windows.window_size, -1)))

"""The WGAN-GP critic: how real do k x k tokens look?"""

from __future__ import annotations

from torch import Tensor, nn

from tokconv.grid import to_grid
from tokconv.models.blocks import ConvBlock


class Critic(nn.Module):
    """Convolutions over the k x k grid of standardised tokens, one score an image.

    No BatchNorm and no dropout: the gradient penalty is per sample (Gulrajani et al. 2017, section 4). Never compile
    it: torch.compile has no double backward.

    Args:
        dim: C.
        num_layers: blocks.
        hidden_dim: width.
    """

    def __init__(self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, hidden_dim)
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim) for _ in range(num_layers)))
        self.norm = nn.LayerNorm(hidden_dim)
        self.score = nn.Linear(hidden_dim, 1)

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B]."""
        hidden = self.blocks(self.enter(to_grid(tokens_BKC)))
        scores: Tensor = self.score(self.norm(hidden)).mean((1, 2, 3))
        return scores

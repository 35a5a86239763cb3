"""Critics: how real k x k tokens look, one score per image.

They have no BatchNorm and no dropout: the gradient penalty is per sample (Gulrajani et al. 2017, section 4). They are
never compiled: torch.compile has no double backward.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normed

from tokconv.models.blocks import ConvBlock, make_norm
from tokconv.models.windows import to_grid


class GridCritic(nn.Module):
    """Convolutions over the k x k grid of standardised tokens.

    Args:
        dim: C.
        num_layers: blocks.
        hidden_dim: width.
        norm: layer or none.
    """

    def __init__(self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer") -> None:
        super().__init__()
        self.enter = nn.Linear(dim, hidden_dim)
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim, norm=norm) for _ in range(num_layers)))
        self.norm = make_norm(norm, hidden_dim)
        self.score = nn.Linear(hidden_dim, 1)

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B]."""
        return self.on_grid(to_grid(tokens_BKC))

    def on_grid(self, grid_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] -> [B]."""
        hidden = self.blocks(self.enter(grid_BHWC))
        return self.score(self.norm(hidden)).mean((1, 2, 3))


class TokenCritic(nn.Module):
    """An MLP on every token alone, averaged: it sees what tokens look like, not how they are arranged.

    Args: as `GridCritic`; num_layers counts hidden layers with a skip.
    """

    def __init__(self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer") -> None:
        super().__init__()
        self.enter = nn.Linear(dim, hidden_dim)
        self.norms = nn.ModuleList(make_norm(norm, hidden_dim) for _ in range(num_layers))
        self.widen = nn.ModuleList(nn.Linear(hidden_dim, 2 * hidden_dim) for _ in range(num_layers))
        self.narrow = nn.ModuleList(nn.Linear(2 * hidden_dim, hidden_dim) for _ in range(num_layers))
        self.score = nn.Linear(hidden_dim, 1)

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B]."""
        hidden = self.enter(tokens_BKC)
        for norm, widen, narrow in zip(self.norms, self.widen, self.narrow, strict=True):
            hidden = hidden + narrow(F.gelu(widen(norm(hidden))))
        return self.score(F.gelu(hidden)).mean((1, 2))


class MultiScaleCritic(nn.Module):
    """The average of three `GridCritic`s, on the k x k grid and on grids of half and a quarter of its side.

    Fine texture and coarse arrangement each have a critic (Wang et al. 2018, arXiv:1711.11585, section 3.2).

    A side is at least 1.

    Args: as `GridCritic`.
    """

    def __init__(self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer") -> None:
        super().__init__()
        self.critics = nn.ModuleList(
            GridCritic(dim, num_layers=num_layers, hidden_dim=hidden_dim, norm=norm) for _ in range(3)
        )

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B]."""
        grid_BCHW = to_grid(tokens_BKC).permute(0, 3, 1, 2)
        scores = []
        for scale, critic in enumerate(self.critics):
            assert isinstance(critic, GridCritic)
            pooled = F.adaptive_avg_pool2d(grid_BCHW, max(1, grid_BCHW.shape[2] >> scale))
            scores.append(critic.on_grid(pooled.permute(0, 2, 3, 1)))
        return torch.stack(scores).mean(0)


def with_spectral_norm(critic: nn.Module) -> nn.Module:
    """Keep the largest singular value of every layer at 1 (Miyato et al. 2018, arXiv:1802.05957, eq. 7).

    The estimates are buffers; a forward pass in training mode updates them by one power iteration.
    """
    for module in critic.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            spectrally_normed(module)
    return critic

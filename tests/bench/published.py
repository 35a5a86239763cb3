"""The published networks, at their published sizes, written out as plain as they are."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from support.plain_loop import Networks
from torch import Tensor, nn

from tokconv.models.windows import Windows

NUM_CONVOLUTIONS, CRITIC_BLOCKS, CRITIC_RATIO = 3, 3, 4


class PublishedCompressor(nn.Module):
    """Three dense 3x3 convolutions over the whole token grid, then pooling to k x k."""

    def __init__(self, token_grid: int, dim: int, output_grid: int) -> None:
        super().__init__()
        self.token_grid, self.output_grid = token_grid, output_grid
        self.layers = nn.ModuleList(nn.Conv2d(dim, dim, 3, padding=1) for _ in range(NUM_CONVOLUTIONS))

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        grid = tokens_BNC.transpose(1, 2).unflatten(2, (self.token_grid, self.token_grid))
        for layer in self.layers:
            grid = grid + F.gelu(layer(grid))
        return F.adaptive_avg_pool2d(grid, self.output_grid).flatten(2).transpose(1, 2)


class PublishedDecoder(nn.Module):
    """One transposed convolution back to the token grid; cheaper than the published decoder, which does not run."""

    def __init__(self, token_grid: int, dim: int, output_grid: int) -> None:
        super().__init__()
        self.output_grid, width = output_grid, -(-token_grid // output_grid)
        self.token_grid, self.up = token_grid, nn.ConvTranspose2d(dim, dim, width, width)

    def forward(self, compressed_BKC: Tensor) -> Tensor:
        grid = compressed_BKC.transpose(1, 2).unflatten(2, (self.output_grid, self.output_grid))
        return self.up(grid)[..., : self.token_grid, : self.token_grid].flatten(2).transpose(1, 2)


class PublishedCritic(nn.Module):
    """A per-token MLP of three blocks, four times as wide inside, averaged over the tokens."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.Sequential(
                nn.LayerNorm(dim), nn.Linear(dim, CRITIC_RATIO * dim), nn.GELU(), nn.Linear(CRITIC_RATIO * dim, dim)
            )
            for _ in range(CRITIC_BLOCKS)
        )
        self.score = nn.Linear(dim, 1)

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        for block in self.blocks:
            tokens_BKC = tokens_BKC + block(tokens_BKC)
        return self.score(tokens_BKC).mean((1, 2))


class Published:
    """The networks, their optimizers and their random draws."""

    def __init__(
        self, token_grid: int, dim: int, output_grid: int, learning_rate: float = 1e-4, device: str = "cpu"
    ) -> None:
        torch.manual_seed(0)
        self.compressor = PublishedCompressor(token_grid, dim, output_grid).to(device)
        self.decoder = PublishedDecoder(token_grid, dim, output_grid).to(device)
        self.critic = PublishedCritic(dim).to(device)
        self.windows, self.generator = Windows(token_grid, output_grid).to(device), torch.Generator().manual_seed(0)
        own = [*self.compressor.parameters(), *self.decoder.parameters()]
        self.networks = Networks(
            self.compressor,
            self.decoder,
            self.critic,
            own,
            torch.optim.Adam(own, learning_rate, foreach=False),
            torch.optim.Adam(self.critic.parameters(), learning_rate, foreach=False),
        )

    def draw(self, tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        real = self.windows.sample(tokens_BNC, self.generator)
        return real, torch.rand(len(tokens_BNC), generator=self.generator).to(tokens_BNC.device)

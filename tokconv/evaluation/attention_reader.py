"""A small attention reader: which class an image has, read from any number of its tokens with their positions.

Every token, with an embedding of where it lies in the image, passes a small network; learned queries attend to the
results (pooling by multi-head attention, Lee et al. 2019, arXiv:1810.00825), and a second network reads what they
found. The frozen reader learns once per store on real tokens of the training images, a random few of each image's
tokens per step, which teaches it to read few. Then it reads compressed tokens, each at the centre of its window. The
adapted reader is the same network, trained on compressed tokens from the start.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tokconv.evaluation import protocol
from tokconv.evaluation.schedule import warmed_cosine
from tokconv.models.windows import Windows

WIDTH, HEADS, NUM_QUERIES = 64, 4, 4
BATCH, RATE = 32, 3e-3
FROZEN_STEPS, ADAPTED_STEPS = 400, 300
PASSES = 10
"""Passes over the images at most."""
TOKENS_READ = 36
"""Tokens of an image that a training step reads at most."""

Draw = Callable[[torch.Generator], tuple[Tensor, Tensor, Tensor]]
"""A generator on the CPU -> tokens [b, n, C], their positions [n, 2] and classes [b], on the reader's device."""


def token_positions(token_grid: int) -> Tensor:
    """Return the centres of an image's tokens, [N, 2] float32 between 0 and 1, row by row."""
    centres = (torch.arange(token_grid) + 0.5) / token_grid
    return torch.cartesian_prod(centres, centres)


def window_positions(windows: Windows) -> Tensor:
    """Return the centres of the windows, [K, 2] float32 between 0 and 1."""
    members = windows.members.cpu().view(windows.num_cells, -1)
    return token_positions(windows.token_grid)[members].mean(1)


class AttentionReader(nn.Module):
    """[B, n, C] standardised tokens and their positions [n, 2] -> class scores [B, classes]."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.enter = nn.Linear(dim, WIDTH)
        self.place = nn.Sequential(nn.Linear(2, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.each = nn.Sequential(nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, WIDTH))
        self.norm, self.key_value = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, 2 * WIDTH)
        self.queries = nn.Parameter(torch.randn(HEADS, NUM_QUERIES, WIDTH // HEADS))
        self.leave = nn.Sequential(
            nn.LayerNorm(NUM_QUERIES * WIDTH),
            nn.Linear(NUM_QUERIES * WIDTH, WIDTH),
            nn.GELU(),
            nn.Linear(WIDTH, num_classes),
        )

    def forward(self, tokens_BnC: Tensor, positions_n2: Tensor) -> Tensor:
        hidden = self.enter(tokens_BnC) + self.place(positions_n2)
        hidden = hidden + self.each(hidden)
        key, value = self.key_value(self.norm(hidden)).unflatten(-1, (2, HEADS, -1)).permute(2, 0, 3, 1, 4)
        # Written out: the gradient of the fused attention is not deterministic on GPUs.
        weights = (self.queries @ key.transpose(-1, -2) / math.sqrt(key.shape[-1])).softmax(-1)
        return self.leave((weights @ value).flatten(1))

    @torch.no_grad()
    def predict(self, tokens_BnC: Tensor, positions_n2: Tensor) -> Tensor:
        """Classify images: [B] int64."""
        return self(tokens_BnC, positions_n2).argmax(1)


def fit_reader(
    draw: Draw, dim: int, num_classes: int, *, images: int, steps: int, device: torch.device
) -> AttentionReader:
    """Train a reader with the protocol's seed, the same on every run.

    Args:
        images: how many there are to draw from; few of them are passed over at most PASSES times.
        steps: at most.
    """
    steps = min(steps, math.ceil(PASSES * images / BATCH))
    generator = torch.Generator().manual_seed(protocol.SEED)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(protocol.SEED)
        reader = AttentionReader(dim, num_classes).to(device)
    optimizer = torch.optim.AdamW(reader.parameters(), RATE, weight_decay=0.05, fused=True)
    with torch.enable_grad():
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = RATE * warmed_cosine(step, steps)
            tokens, positions, classes = draw(generator)
            loss = F.cross_entropy(reader(tokens, positions), classes)
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(reader.parameters(), 1.0)
            optimizer.step()
    return reader.eval().requires_grad_(False)


def some_positions(count: int, generator: torch.Generator) -> Tensor:
    """Return which of an image's tokens a training step reads, ascending [n] int64."""
    return torch.randperm(count, generator=generator)[:TOKENS_READ].sort().values

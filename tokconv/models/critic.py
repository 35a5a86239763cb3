"""Critics: what real tokens look like, one score per sample, which is an image's k x k tokens or a single token.

They have no BatchNorm and no dropout: the gradient penalty is per sample (Gulrajani et al. 2017, section 4). They are
never compiled: torch.compile has no double backward.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm as spectrally_normed

from tokconv.models.blocks import ChannelMap, ConvBlock, channel_map, make_norm
from tokconv.models.windows import to_grid


class Critic(nn.Module):
    """The base of critics: what a sample is, and the coordinates in which it is seen.

    Losses and penalties take samples [n, K, C] and `scores`; n is B images, or B*K tokens of K = 1.

    Args:
        dim: C.
        whiten: it sees tokens through a fixed linear map (`tokconv.store.covariance.whitening`).
    """

    per_token = False
    """Whether every token is a sample."""

    def __init__(self, dim: int, whiten: bool) -> None:
        super().__init__()
        self.coordinates = channel_map(dim, whiten)

    def samples(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [n, K, C] or [n, 1, C], the samples in the critic's coordinates."""
        seen = tokens_BKC
        if isinstance(self.coordinates, ChannelMap):
            # Half precision would bury the small directions that whitening is to bring out.
            with nullcontext() if seen.is_meta else torch.autocast(seen.device.type, enabled=False):
                seen = self.coordinates(seen)
        return seen.flatten(0, 1)[:, None] if self.per_token else seen

    def scores(self, samples: Tensor) -> Tensor:
        """[n, K, C] -> [n]."""
        raise NotImplementedError

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [n], the scores of all samples."""
        return self.scores(self.samples(tokens_BKC))


class GridCritic(Critic):
    """Convolutions over the k x k grid of standardised tokens; an image is a sample.

    Args: as `Critic`, and
        num_layers: blocks.
        hidden_dim: width.
        norm: layer or none.
    """

    def __init__(
        self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer", whiten: bool = False
    ) -> None:
        super().__init__(dim, whiten)
        self.enter = nn.Linear(dim, hidden_dim)
        self.blocks = nn.Sequential(*(ConvBlock(hidden_dim, norm=norm) for _ in range(num_layers)))
        self.norm = make_norm(norm, hidden_dim)
        self.score = nn.Linear(hidden_dim, 1)

    def scores(self, samples: Tensor) -> Tensor:
        return self.on_grid(to_grid(samples))

    def on_grid(self, grid_BHWC: Tensor) -> Tensor:
        """[B, H, W, C] -> [B]."""
        hidden = self.blocks(self.enter(grid_BHWC))
        return self.score(self.norm(hidden)).mean((1, 2, 3))


class TokenCritic(Critic):
    """An MLP on every token alone, which is a sample: it sees what tokens look like, not how they are arranged.

    Averaged over an image, its penalty would bound the mean of K slopes, and let those at single tokens be as steep as
    they like.

    Args: as `GridCritic`; num_layers counts hidden layers with a skip.
    """

    per_token = True

    def __init__(
        self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer", whiten: bool = False
    ) -> None:
        super().__init__(dim, whiten)
        self.enter = nn.Linear(dim, hidden_dim)
        self.norms = nn.ModuleList(make_norm(norm, hidden_dim) for _ in range(num_layers))
        self.widen = nn.ModuleList(nn.Linear(hidden_dim, 2 * hidden_dim) for _ in range(num_layers))
        self.narrow = nn.ModuleList(nn.Linear(2 * hidden_dim, hidden_dim) for _ in range(num_layers))
        self.score = nn.Linear(hidden_dim, 1)

    def scores(self, samples: Tensor) -> Tensor:
        hidden = self.enter(samples)
        for norm, widen, narrow in zip(self.norms, self.widen, self.narrow, strict=True):
            hidden = hidden + narrow(F.gelu(widen(norm(hidden))))
        return self.score(F.gelu(hidden)).mean((1, 2))


class MultiScaleCritic(Critic):
    """The average of three `GridCritic`s, on the k x k grid and on grids of half and a quarter of its side.

    Fine texture and coarse arrangement each have a critic (Wang et al. 2018, arXiv:1711.11585, section 3.2).

    A side is at least 1.

    Args: as `GridCritic`.
    """

    def __init__(
        self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer", whiten: bool = False
    ) -> None:
        super().__init__(dim, whiten)
        self.critics = nn.ModuleList(
            GridCritic(dim, num_layers=num_layers, hidden_dim=hidden_dim, norm=norm) for _ in range(3)
        )

    def scores(self, samples: Tensor) -> Tensor:
        grid_BCHW = to_grid(samples).permute(0, 3, 1, 2)
        scores = []
        for scale, critic in enumerate(self.critics):
            assert isinstance(critic, GridCritic)
            pooled = F.adaptive_avg_pool2d(grid_BCHW, max(1, grid_BCHW.shape[2] >> scale))
            scores.append(critic.on_grid(pooled.permute(0, 2, 3, 1)))
        return torch.stack(scores).mean(0)


class BothCritics(nn.Module):
    """A `TokenCritic` and a `GridCritic`, which share nothing: single tokens and their arrangement each have a critic.

    Args: as `GridCritic`, of each.
    """

    def __init__(
        self, dim: int, *, num_layers: int = 2, hidden_dim: int = 128, norm: str = "layer", whiten: bool = False
    ) -> None:
        super().__init__()
        self.token = TokenCritic(dim, num_layers=num_layers, hidden_dim=hidden_dim, norm=norm, whiten=whiten)
        self.grid = GridCritic(dim, num_layers=num_layers, hidden_dim=hidden_dim, norm=norm, whiten=whiten)

    def forward(self, tokens_BKC: Tensor) -> Tensor:
        """[B, K, C] -> [B*K + B], the scores of all tokens, then of all images."""
        return torch.cat([self.token(tokens_BKC), self.grid(tokens_BKC)])


def critics_of(critic: nn.Module) -> Mapping[str, Critic]:
    """Return the critics that are updated and weighed each on its own, by name; a single one is called ""."""
    if isinstance(critic, BothCritics):
        return {"token": critic.token, "grid": critic.grid}
    assert isinstance(critic, Critic)
    return {"": critic}


def with_spectral_norm(critic: nn.Module) -> nn.Module:
    """Keep the largest singular value of every layer at 1 (Miyato et al. 2018, arXiv:1802.05957, eq. 7).

    The estimates are buffers; a forward pass in training mode updates them by one power iteration.
    """
    for module in critic.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            spectrally_normed(module)
    return critic

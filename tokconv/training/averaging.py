"""Averaged weights: the networks that are evaluated and exported, while the raw ones go on training.

Exponential moving average: Polyak and Juditsky 1992; for adversarial training Yazici et al. 2019, arXiv:1806.04498, eq.
5. After step t (from 0) it is decay * average + (1 - decay) * weights with decay = min(`training.ema`,
(1 + t) / (10 + t)): the start weighs less the further training is from it.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Averages:
    """Copies of networks whose weights are averages over the steps; buffers, which do not change, stay as they are.

    Args:
        networks: what is trained, by name.
        decay: the largest one, below 1.
    """

    def __init__(self, networks: Mapping[str, nn.Module], decay: float) -> None:
        self.decay = decay
        self.networks = {name: copy.deepcopy(network).requires_grad_(False) for name, network in networks.items()}
        self._averaged: list[Tensor] = [weight for copied in self.networks.values() for weight in copied.parameters()]
        self._raw: list[Tensor] = [weight for network in networks.values() for weight in network.parameters()]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after this step, counted from 0."""
        decay = min(self.decay, (1 + step) / (10 + step))
        torch._foreach_lerp_(self._averaged, self._raw, 1 - decay)

"""A trainer of small networks."""

from __future__ import annotations

import torch

from support.networks import PUBLISHED
from tokconv.config.tree import Config
from tokconv.store.reader import TokenStore
from tokconv.training.step import Trainer

SMALL = [*PUBLISHED, "model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8", "model.critic.hidden_dim=8"]


def trainer_of(config: Config, store: TokenStore) -> Trainer:
    return Trainer(config, store, device=torch.device("cpu"), wrap=lambda module: module, total_steps=10)

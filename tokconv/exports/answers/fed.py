"""Tokens in the place of a vision tower: what follows it in a model runs as ever, and the tower does not."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from tokconv.exports.integrations.family import VisionLanguageFamily


class TowerFed(AbstractContextManager["TowerFed"]):
    """A model whose tower returns given tokens until the context ends.

    Args:
        tokens: [images or tiles, K, C], what the family's host receives (`VisionLanguageFamily.host`). Where the host
            is a part of the tower, the tower returns what it makes of them.
    """

    def __init__(self, model: Any, family: VisionLanguageFamily, tokens: Tensor) -> None:
        self._tower, config = model.get_submodule(family.tower), model.config
        inside = family.host.startswith(f"{family.tower}.")
        last = model.get_submodule(family.host)(tokens) if inside else tokens
        if getattr(config, "vision_feature_select_strategy", "full") == "default":
            # The model leaves out the first token.
            tokens = torch.cat([tokens[:, :1], tokens], 1)
        states = (tokens,) * (config.vision_config.num_hidden_layers + 1)
        self._output = BaseModelOutputWithPooling(last_hidden_state=last, hidden_states=states)

    def __enter__(self) -> TowerFed:
        self._tower.forward = lambda *arguments, **options: self._output
        return self

    def __exit__(self, *error: object) -> None:
        del self._tower.forward

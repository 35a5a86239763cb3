"""The judge of a trial's last epoch, and where its teacher is: light to import, because every process of a trial does,
also without either."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.evaluation.codecs import Codec
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore
from tokconv.system.files import local_path

if TYPE_CHECKING:
    from tokconv.exports.answers.judge import VlmJudge
    from tokconv.exports.answers.teacher import VlmTeacher

PROMPTS_FILE = ".txt"
"""The end of `loss.vlm.prompts` if that names a file."""


@dataclass(frozen=True)
class JudgeSettings:
    """What judges; `tokconv.sweep.spec.sections.Vlm` explains the values."""

    model: Path
    prompts: tuple[str, ...]
    images: int
    tokens: int


class LastEpochJudge:
    """A judge whose model is loaded when it is first asked, after the last epoch of a trial."""

    def __init__(self, store: TokenStore, settings: JudgeSettings, device: torch.device) -> None:
        self._arguments = store, settings, device

    def __call__(self, codec: Codec) -> Figures:
        """Return the figures of a codec."""
        return self._loaded(codec)

    def baseline(self, grid: int, name: str) -> Figures:
        """Return those of a baseline."""
        return self._loaded.baseline(grid, name)

    @cached_property
    def _loaded(self) -> VlmJudge:
        from tokconv.exports.answers.judge import VlmJudge

        return VlmJudge(*self._arguments)


def open_teacher(config: Config, store: TokenStore, device: torch.device) -> VlmTeacher | None:
    """Return the teacher that a config names; None for none.

    Raises:
        DataError, ConfigError: as `VlmTeacher`.
    """
    if not config.loss.weights.vlm:
        return None
    from tokconv.exports.answers.teacher import VlmTeacher  # Its imports take three seconds.

    return VlmTeacher(store, config, device)


def located(config: Config) -> Config:
    """Return a config that names its teacher by whole paths, for processes that run elsewhere."""
    vlm = config.loss.vlm
    if vlm.model is None:
        return config
    whole = {"loss.vlm.model": str(local_path(vlm.model).absolute())}
    if vlm.prompts.endswith(PROMPTS_FILE):
        whole["loss.vlm.prompts"] = str(local_path(vlm.prompts).absolute())
    return with_values(config, whole)

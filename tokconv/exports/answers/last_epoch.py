"""The judge of a trial's last epoch: light to import, because every process of a trial does, also without a judge."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokconv.evaluation.codecs import Codec
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore

if TYPE_CHECKING:
    from tokconv.exports.answers.judge import VlmJudge


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
        self._judge: VlmJudge | None = None

    def __call__(self, codec: Codec) -> Figures:
        """Return the figures of a codec."""
        if self._judge is None:
            from tokconv.exports.answers.judge import VlmJudge

            self._judge = VlmJudge(*self._arguments)
        return self._judge(codec)

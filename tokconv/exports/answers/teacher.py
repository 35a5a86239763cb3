"""A frozen vision-language model as a teacher: a loss of compressed tokens, on the training images of a token store."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from tokconv.config.tree import Config, VlmConfig
from tokconv.errors import ConfigError
from tokconv.exports.answers.judge import VlmJudge
from tokconv.exports.answers.last_epoch import PROMPTS_FILE, JudgeSettings
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.next_tokens import NextTokens
from tokconv.store.reader import TokenStore
from tokconv.system.files import local_path, text_lines
from tokconv.system.terminal import progress_line

JUDGED = 256
"""Held-out images, at most, that epochs are compared on. With 64 textiles at 6 x 6, the worse of two epochs won."""


class VlmTeacher:
    """The teacher of one store (`tokconv.training.step.Teacher`), and the judge of what it has taught.

    Args:
        store: its training images are taught on, all of them.
        config: `loss.vlm` names the model.
        device: where the model runs.

    Attributes:
        name: a digest of model, prompts, answers and images.
        judge: the same model on held-out images.

    Raises:
        DataError: the directory holds no model that can answer.
        ConfigError: the prompts cannot be read, or the store does not hold the tokens that the model's projector reads.

    Example:
        >>> teacher = VlmTeacher(store, config, device)                                          # doctest: +SKIP
        >>> tokconv.train(config, store, "runs/taught", teacher=teacher)                         # doctest: +SKIP
    """

    def __init__(self, store: TokenStore, config: Config, device: torch.device) -> None:
        settings = teacher_settings(config.loss.vlm)
        model = AnsweringModel(settings.model, device)
        self._said = NextTokens(store, settings, model, store.train_indices)
        self._places = {image: place for place, image in enumerate(store.train_indices.tolist())}
        self.judge = VlmJudge(store, settings, device, model)
        self.judge.check_tower(config)
        self._asked = config.loss.vlm.prompts_per_step
        self.name = self._said.name

    def prepare(self, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Read all tokens of every training image, once per store; `tell` is called with how many are done, and all."""
        self._said.prepare(tell)

    def prepare_and_print(self) -> None:
        """Do the same with its progress on the console."""
        with progress_line("what the language model makes of all tokens") as line:
            self.prepare(line)

    def __call__(self, compressed_bKC: Tensor, images_b: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean divergence over these images for the prompts of a step, which are drawn; a scalar.

        Args:
            compressed_bKC: in token units.
            images_b: their indices in the store.
        """
        prompts = torch.randperm(len(self._said.prompts), generator=generator)[: self._asked].tolist()
        places = torch.tensor([self._places[image] for image in images_b.tolist()])
        return self._said.divergence(compressed_bKC, places, prompts)


def teacher_settings(vlm: VlmConfig) -> JudgeSettings:
    """Return the settings of a config. Raises ConfigError if its prompts cannot be read."""
    assert vlm.model is not None
    prompts = [line for text in vlm.prompts.splitlines() if (line := text.strip())]
    if vlm.prompts.endswith(PROMPTS_FILE):
        try:
            prompts = text_lines(local_path(vlm.prompts))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"loss.vlm.prompts: {vlm.prompts} cannot be read ({type(error).__name__}); name a text file with one "
                "per line, or write a prompt"
            ) from error
    if not prompts:
        raise ConfigError(f"loss.vlm.prompts: got {vlm.prompts!r}, which holds no prompt; write one")
    return JudgeSettings(local_path(vlm.model).absolute(), tuple(prompts), JUDGED, vlm.tokens)

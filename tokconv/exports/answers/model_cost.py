"""What a vision-language model costs as a judge and as a teacher, measured on a few readings before any tokens exist.

The tokens are random, and the answers that are compared are made up: neither changes what a reading takes. An answer is
as long as it may be.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tokconv.errors import ConfigError
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.next_tokens import BATCH, Said, divergence_from, prompts_of, say
from tokconv.exports.answers.prefill import Prompt
from tokconv.training.measured import Measured, counted_flops, median_seconds
from tokconv.training.networks import TokenShape

CPU_FLOPS = 1e11
"""Of a timed reading on CPUs: about two seconds on one core."""
TIMED_READINGS = 3


class ReadingMeter:
    """Measures what a model reads of one image with every prompt.

    Args:
        settings: model, prompts, and tokens of an answer.
        shape: of the tokens that a store holds.
        grids: the compressed ones that the model will read.
        device: where it reads.
        timed: also measure seconds.

    Raises:
        DataError: the directory holds no model that can answer.
        ConfigError: it does not read such tokens, or not at these grids.

    Example:
        >>> settings = JudgeSettings(Path("llava"), ("What is this?",), 64, 8)                  # doctest: +SKIP
        >>> ReadingMeter(settings, shape, [6], device=device, timed=False).judge(6).flops       # doctest: +SKIP
    """

    def __init__(
        self, settings: JudgeSettings, shape: TokenShape, grids: Iterable[int], *, device: torch.device, timed: bool
    ) -> None:
        self._device, self._timed, self._limit = device, timed, settings.tokens
        self._model = model = AnsweringModel(settings.model, device)
        # No token ends an answer.
        model.ends = set()
        self._shape = shape
        for what, found, wanted in (
            ("width", shape.dim, model.dim),
            ("token grid", shape.token_grid, model.token_grid),
        ):
            if found != wanted:
                raise ConfigError(f"{settings.model}: the {what} of its tower is {wanted}, that of the tokens {found}")
        model.check_patch_tokens()
        for grid in grids:
            model.check_grid(grid)
        self._prompts = prompts_of(settings, model)

    def teacher(self, grid: int, batch: int, prompts: int) -> Measured:
        """Return the cost of k * k tokens in a training step of so many images, which asks so many of the prompts, the
        way back to them included."""
        # In the middle of their lengths, as those of a step are on average.
        ordered = sorted(self._prompts, key=lambda prompt: len(self._model.token_ids(prompt)))
        first = max(0, len(ordered) - prompts) // 2
        asked = ordered[first : first + prompts]

        def teach(count: int) -> None:
            cells = self._tokens(count, grid).requires_grad_(True)
            divergence_from(self._model, self._said(count, asked), cells, asked).backward()

        return self._measure(teach, batch)

    def judge(self, grid: int) -> Measured:
        """Return the cost of k * k tokens in a judgement."""

        @torch.inference_mode()
        def judge(count: int) -> None:
            divergence_from(self._model, self._said(count, self._prompts), self._tokens(count, grid), self._prompts)

        return self._measure(judge, BATCH)

    def all_tokens(self) -> Measured:
        """Return the cost of finding out what all tokens say."""

        @torch.inference_mode()
        def listen(count: int) -> None:
            tokens = self._tokens(count, self._shape.token_grid)
            for _ in say(self._model, tokens, self._prompts, self._limit):
                pass

        return self._measure(listen, BATCH)

    def _measure(self, read: Callable[[int], None], batch: int) -> Measured:
        """Return the cost of one image, of which `read` takes a number and which are read in batches."""
        flops = counted_flops(lambda: read(1))
        if not self._timed:
            return Measured(flops, None)
        count = batch if self._device.type != "cpu" else max(1, min(batch, int(CPU_FLOPS / flops)))
        return Measured(flops, median_seconds(lambda _: read(count), TIMED_READINGS, self._device) / count)

    def _tokens(self, count: int, grid: int) -> Tensor:
        generator = torch.Generator().manual_seed(0)
        return torch.randn(count, grid**2, self._shape.dim, generator=generator).to(self._device)

    def _said(self, count: int, prompts: Sequence[Prompt]) -> list[Said]:
        """Return answers about each image, and the states that predicted them, where a file of them would be."""
        width = self._model.model.config.get_text_config().hidden_size
        token = self._model.token_ids(prompts[0])[-1]
        answer = (torch.full((self._limit,), token), torch.ones(self._limit, width))
        return [[answer] * count for _ in prompts]

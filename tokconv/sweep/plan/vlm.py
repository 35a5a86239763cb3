"""What the vision-language models of a sweep read: as teacher and judge of its trials, and once per store.

a step               the compressed tokens of each image of the batch with some prompts, and the way back to them
the end of a trial   those of the judge's images with every prompt, for the last epoch and for a best one before it
before the trials    all tokens of the teacher's and the judge's images with every prompt, then what each baseline
                     makes of the judge's images at every grid
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from tokconv.config.tree import matryoshka_grids
from tokconv.errors import ConfigError, TokconvError, first_line
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.sweep.plan.tokens import PlannedTokens
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.trials.vlm import judge_settings, taught_config
from tokconv.system.terminal import data_size
from tokconv.training.measured import Measured

if TYPE_CHECKING:
    from tokconv.exports.answers.model_cost import ReadingMeter

JUDGED_EPOCHS = 2
"""The last epoch of a trial, and that of the lowest fvu."""
FREE_MEMORY = 0.8
"""Share of the free memory that a model's weights may take."""
KIND_KEY, MANY_GRIDS = "model.compressor.kind", "matryoshka"


@dataclass(frozen=True)
class Reader:
    """A model that was found, and what it reads."""

    meter: ReadingMeter
    images: int
    prompts: int


class Readings:
    """The readings of a sweep. A model that is not on this machine, or cannot read the tokens, counts for nothing.

    Args:
        tokens: of the store, whether it exists or not.
        device: where the models read.
        timed: also measure seconds, with as many threads as torch has at that moment.

    Attributes:
        judge, teacher: None without one, or if it was not found.
        assumed: sentences.
    """

    def __init__(self, spec: Spec, tokens: PlannedTokens, *, device: torch.device, timed: bool) -> None:
        self._spec, self._tokens, self._device, self._timed = spec, tokens, device, timed
        self._meters: dict[object, ReadingMeter] = {}
        self._known: dict[object, Measured] = {}
        self._missing: list[str] = []
        self.judge = self._open(
            "as a judge", lambda: judge_settings(spec), lambda settings: min(settings.images, tokens.val_images)
        )
        self.teacher = self._open(
            "as a teacher, which is most of a step", lambda: _teacher_settings(spec), lambda _: tokens.train_images
        )
        self.assumed = (*self._missing, *self._assumed())

    def taught(self, grid: int) -> Measured:
        """Return what the teacher reads of one image in a step."""
        if self.teacher is None:
            return Measured()
        meter, config = self.teacher.meter, self._spec.base_config()
        batch, prompts = config.training.batch_size, config.loss.vlm.prompts_per_step
        return self._measured(("teacher", meter, grid), lambda: meter.teacher(grid, batch, prompts))

    def judged(self, grid: int) -> Measured:
        """Return what the judge reads at the end of a trial."""
        return self._judgement(grid).times(JUDGED_EPOCHS)

    def once(self, grids: Sequence[int]) -> Measured:
        """Return what is read before the trials, once per store and model."""
        found = Measured()
        for grid in grids:
            found += self._judgement(grid).times(len(BASELINES))
        for reader in (self.judge, self.teacher):
            if reader is not None:
                meter = reader.meter
                found += self._measured(("all tokens", meter), meter.all_tokens).times(reader.images)
        return found

    def _judgement(self, grid: int) -> Measured:
        """Return what the judge reads of one compressor."""
        if self.judge is None:
            return Measured()
        meter = self.judge.meter
        return self._measured(("judge", meter, grid), lambda: meter.judge(grid)).times(self.judge.images)

    def _measured(self, kind: tuple[object, ...], measure: Callable[[], Measured]) -> Measured:
        kind = (*kind, torch.get_num_threads())
        if kind not in self._known:
            self._known[kind] = measure()
        return self._known[kind]

    def _open(
        self, role: str, settings: Callable[[], JudgeSettings | None], images: Callable[[JudgeSettings], int]
    ) -> Reader | None:
        """Return a reader; None without one, or with a sentence about why it cannot be measured."""
        try:
            if (wanted := settings()) is None:
                return None
            return Reader(self._meter(wanted), images(wanted), len(wanted.prompts))
        except (TokconvError, ImportError) as error:
            read = "nothing is counted of what the vision-language model reads"
            self._missing.append(f"{read} {role} ({first_line(error)})")
            return None

    def _meter(self, settings: JudgeSettings) -> ReadingMeter:
        """Return the meter of a model and its prompts; a judge that also teaches is opened once."""
        from tokconv.exports.answers.model_cost import ReadingMeter  # Its imports take three seconds.

        asked = (settings.model, settings.prompts, settings.tokens)
        if asked not in self._meters:
            _check_memory(settings.model)
            shape, grids = self._tokens.shape, _every_grid(self._spec)
            self._meters[asked] = ReadingMeter(settings, shape, grids, device=self._device, timed=self._timed)
        return self._meters[asked]

    def _assumed(self) -> Iterator[str]:
        readers = [reader for reader in (self.judge, self.teacher) if reader is not None]
        if readers:
            yield "the language model's answers are as long as they may be; opening it is not counted"
            yield "nothing is known yet of what it reads once, which it does on a device like that of the trials"
        if self.judge is not None:
            yield "the epoch of a trial with the lowest fvu is not its last one, so that the model judges both"


def _check_memory(model: Path) -> None:
    """Raise ConfigError if a model may not fit into this machine's memory: a plan must not be killed for it."""
    import psutil  # Ray brings it; `tokconv` alone does not.

    weights, free = sum(file.stat().st_size for file in model.glob("*.safetensors")), psutil.virtual_memory().available
    if weights > FREE_MEMORY * free:
        raise ConfigError(f"{model}: its weights take {data_size(weights)}, of {data_size(free)} of free memory")


def _teacher_settings(spec: Spec) -> JudgeSettings | None:
    """Return the teacher of a spec's trials; None for none. Raises ConfigError if there is no model or no prompt."""
    if not spec.may_be_taught:
        return None
    from tokconv.exports.answers.teacher import teacher_settings

    return teacher_settings(taught_config(spec.base_config()).loss.vlm)


def _every_grid(spec: Spec) -> set[int]:
    """Return every grid that a model may have to read: some compressors serve several."""
    compressor = spec.base_config().model.compressor
    kinds = (*(spec.search[KIND_KEY].members() if KIND_KEY in spec.search else ()), compressor.kind)
    return {*spec.grids(), *(matryoshka_grids(compressor) if MANY_GRIDS in kinds else ())}

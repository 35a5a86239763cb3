"""The cost of a training step, measured on a few steps before any tokens exist: FLOPs, seconds, parameters and bytes.

Shapes: B images of N = G * G tokens of C channels. The steps are those of `Trainer`, critic updates and double backward
included, on random tokens and networks that start at random: neither changes the cost of a step. What a teacher reads
is not among them: it is measured by itself (`tokconv.exports.answers.model_cost`), because it is the same for all
networks.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from tokconv.config.tree import Config
from tokconv.evaluation.codecs import codec_of
from tokconv.evaluation.evaluator import Evaluator
from tokconv.store.reader import TokenStore
from tokconv.training.measured import Measured, counted_flops, median_seconds
from tokconv.training.networks import TokenShape
from tokconv.training.step import Trainer

COUNTED_IMAGES = 2
"""With a batch of one, losses that compare images would not be counted."""
MULTI_GRID_STEPS = 8
"""Each step of a compressor with several grids draws one of them."""
CPU_STEP_FLOPS = 4e10
"""The largest timed step on CPUs: about a second on one core."""
TIMED_STEPS = 3
READ_IMAGES = 64
TRAINED = ("compressor", "decoder", "critic")
"""The networks of a trial; averaged weights come on top of them in a checkpoint."""
TOTAL_STEPS = 1_000_000
"""Length of the learning rate's schedule: long, so that the rate is still near 0 and nothing diverges."""


@dataclass(frozen=True)
class StepCost:
    """The cost of one config, or the mean over several, at one shape of tokens."""

    parameters: float
    """Weights of compressor, decoder and critic."""
    checkpoint_bytes: float
    """Weights and the states of both optimizers."""
    export_bytes: float
    """Weights of compressor and decoder."""
    flops: float
    """FLOPs of a whole training step per image of its batch."""
    seconds: float | None
    """Seconds of a training step of `training.batch_size` images on the given device; None if it was not timed."""
    taught_flops: float = 0.0
    """Those of `flops` that are a teacher's."""
    taught_seconds: float = 0.0
    """Those of `seconds` that are a teacher's; 0 if nothing was timed."""


class StepMeter:
    """Measures the cost of a config's training steps by taking a few.

    Consecutive configs with the same networks share them: at 24 x 24 x 1024 tokens building networks takes longer than
    training them for a few steps.

    Args:
        shape: of the tokens.
        device: where the steps run.
        timed: also measure seconds.
        taught: output grid -> what the teacher reads of one image, if `loss.weights.vlm` is above 0.
    """

    def __init__(
        self,
        shape: TokenShape,
        *,
        device: torch.device,
        timed: bool,
        taught: Callable[[int], Measured] = lambda grid: Measured(),
    ) -> None:
        self._shape, self._device, self._timed, self._taught = shape, device, timed, taught
        self._trainer: Trainer | None = None

    def __call__(self, config: Config) -> StepCost:
        """Return the cost of a step of `training.batch_size` images on one device.

        Raises:
            MissingExtraError: a loss needs a package that is not installed.
        """
        trainer = self._trainer_of(config)
        flops = _flops(trainer, self._shape)
        networks = {name: _bytes(module) for name, module in trainer.modules.items()}
        taught = self._teacher_cost(trainer) if config.loss.weights.vlm > 0 else Measured()
        taught_seconds = (taught.seconds or 0.0) * config.training.batch_size
        # Adam keeps two moments for every parameter that it has ever updated.
        trained = [networks[name] for name in TRAINED if name != "critic" or config.loss.weights.wgan > 0]
        return StepCost(
            parameters=sum(p.numel() for name in TRAINED for p in trainer.modules[name].parameters()),
            checkpoint_bytes=sum(networks.values()) + 2 * sum(trained),
            export_bytes=networks["compressor"] + networks["decoder"],
            flops=flops + taught.flops,
            seconds=_seconds(trainer, self._shape, flops) + taught_seconds if self._timed else None,
            taught_flops=taught.flops,
            taught_seconds=taught_seconds,
        )

    def _teacher_cost(self, trainer: Trainer) -> Measured:
        """Return the mean over the grids of the compressor, of which each step draws one."""
        grids = trainer.compressor.grids
        return sum(map(self._taught, grids), Measured()).times(1 / len(grids))

    def _trainer_of(self, config: Config) -> Trainer:
        trainer, made_by = self._trainer, _made_by(config)
        if trainer is None or _made_by(trainer.config) != made_by:
            # The old one is freed first: two of them may not fit in memory. It is part of reference cycles.
            self._trainer = trainer = None
            gc.collect()
            self._trainer = trainer = _trainer(config, self._shape, self._device)
        trainer.take_config(config)
        return trainer


def evaluation_seconds(config: Config, store: TokenStore, *, device: torch.device) -> float:
    """Return the seconds that the held-out figures of one epoch take, measured on an existing store.

    The evaluator's preparation, which happens once per trial, is not included.
    """
    shape = TokenShape(store.token_grid, store.dim, store.mean, store.scale)
    trainer = _trainer(config, shape, device)
    evaluator = Evaluator(store, config.model.compressor.output_grid_size, device)
    start = time.perf_counter()
    evaluator.evaluate(codec_of(trainer.compressor, trainer.decoder))
    return time.perf_counter() - start


def read_seconds(store: TokenStore) -> float:
    """Return the seconds to read one image's tokens from a store, from the page cache if it was read before."""
    images = store.train_indices[torch.randperm(len(store.train_indices))[:READ_IMAGES]]
    start = time.perf_counter()
    store.tokens(images)
    return (time.perf_counter() - start) / len(images)


def _made_by(config: Config) -> tuple[object, ...]:
    """Return the part of a config that a trainer is built from."""
    return config.model, config.loss.wgan.kind, config.training.ema > 0


def _trainer(config: Config, shape: TokenShape, device: torch.device) -> Trainer:
    return Trainer(config, shape, device=device, wrap=lambda module: module.to(device), total_steps=TOTAL_STEPS)


def _flops(trainer: Trainer, shape: TokenShape) -> float:
    steps = MULTI_GRID_STEPS if len(trainer.compressor.grids) > 1 else 1

    def work() -> None:
        for step in range(steps):
            trainer.step(_tokens(shape, COUNTED_IMAGES), step)

    return counted_flops(work) / (steps * COUNTED_IMAGES)


def _seconds(trainer: Trainer, shape: TokenShape, flops: float) -> float:
    """Return the seconds of a step of `training.batch_size` images, extrapolated if they are too many to time.

    The optimizers' share of a step does not grow with its images, so that it takes two small steps to extrapolate.
    """
    batch = trainer.config.training.batch_size
    affordable = batch if trainer.device.type != "cpu" else max(2 * COUNTED_IMAGES, int(CPU_STEP_FLOPS / flops))
    if affordable >= batch:
        return _median_seconds(trainer, shape, batch)
    few, more = (_median_seconds(trainer, shape, images) for images in (affordable // 2, affordable))
    per_image = max(0.0, (more - few) / (affordable - affordable // 2)) or more / affordable
    return more + per_image * (batch - affordable)


def _median_seconds(trainer: Trainer, shape: TokenShape, batch: int) -> float:
    tokens_BNC = _tokens(shape, batch)
    times = TIMED_STEPS * len(trainer.compressor.grids)
    return median_seconds(lambda step: trainer.step(tokens_BNC, step), times, trainer.device)


def _tokens(shape: TokenShape, batch: int) -> Tensor:
    return torch.randn(batch, shape.token_grid**2, shape.dim, generator=torch.Generator().manual_seed(0))


def _bytes(module: nn.Module) -> int:
    return sum(value.numel() * value.element_size() for value in module.state_dict().values())

"""The plan of a sweep before anything runs: trials, epochs, store, accelerator hours, storage, memory.

    a step             FLOPs / (peak * utilisation), or the seconds it took on the device at hand
    a trial            start + figures of epoch 0 + last figures
                       + epochs * (steps / its share of accelerators + reading tokens + evaluation)
                       + a vision-language model's judgement
    accelerator hours  a trial's hours * its accelerators, summed over trials and confirmations

FLOPs, seconds and bytes come from real training steps of the networks that the search can build. The plan lists its
assumptions. `tokconv.sweep.plan.text` formats it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import fmean

import torch

from tokconv.config.overrides import with_values
from tokconv.evaluation.baselines.fits import MAX_COVARIANCE, SELECTIONS, SVD_BYTES
from tokconv.evaluation.protocol import MAX_IMAGES, MAX_TEST_IMAGES
from tokconv.models.windows import check_output_grid
from tokconv.store.sample import MAX_IMAGES as MAX_FITTED
from tokconv.sweep.plan.accelerator import Accelerator
from tokconv.sweep.plan.space import draw_points, space_cost
from tokconv.sweep.plan.stopping import epochs_share
from tokconv.sweep.plan.tokens import PlannedTokens, plan_tokens
from tokconv.sweep.plan.vlm import Readings
from tokconv.sweep.record.layout import stores_place
from tokconv.sweep.search.space import check_space
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.schema import Spec
from tokconv.system.devices import resolve_device
from tokconv.training.step_cost import StepCost, StepMeter, evaluation_seconds, read_seconds

START_SECONDS = {"torch_trainer": 12.0, "inline": 2.0}
"""Seconds until a trial's processes have started; measured on 2 CPU cores without other work."""
REGRESSIONS = 2 + len(SELECTIONS)
"""Baselines whose decoders are regressions from cells to windows, fitted at the same time."""


@dataclass(frozen=True, kw_only=True)
class GridPlan:
    """The cost of a step and an epoch at one grid, as means over the search space."""

    grid: int
    cost: StepCost
    step_seconds: float
    """Seconds of a step on one whole accelerator, or on the CPUs of one worker."""
    epoch_seconds: float
    """Seconds of a trial's epoch, with evaluation and reading, on its share of accelerators."""
    last_seconds: float
    """Seconds of the figures that only the last epoch has."""
    start_seconds: float
    """Seconds of the figures of the start, epoch 0."""
    judged_seconds: float
    """Seconds in which a vision-language model judges a trial at its end."""


@dataclass(frozen=True, kw_only=True)
class SweepPlan:
    """The hours and bytes of a whole sweep."""

    spec: Spec
    accelerator: Accelerator
    where: str
    """The device that was timed, or the given accelerator."""
    tokens: PlannedTokens
    grids: tuple[GridPlan, ...]
    trials: int
    confirmations: int
    epochs: int
    """Epochs of a trial that runs to its end."""
    share: tuple[float, float]
    """Share of the trials' epochs that early stopping leaves: the least and the most."""
    batch_size: int
    steps_per_epoch: int
    read_seconds: float
    """Seconds in which one trial reads the tokens of an epoch."""
    readings: Readings
    once_seconds: float
    """Seconds in which vision-language models read what trials need, before the first one starts."""
    left_out: str
    """What a grid leaves out because it is invalid; "" for nothing."""
    assumed: tuple[str, ...]

    @property
    def accelerators_of_a_trial(self) -> float:
        """GPUs per trial, or CPUs if it uses none."""
        resources = self.spec.resources
        return resources.workers * (resources.gpus_per_worker or resources.cpus_per_worker)

    def trial_seconds(self, grid: GridPlan, *, share: float = 1.0) -> float:
        """Return the seconds of one trial that runs this share of its epochs."""
        trained = share * (self.epochs * grid.epoch_seconds + grid.last_seconds + grid.judged_seconds)
        return START_SECONDS[self.spec.resources.runner] + grid.start_seconds + trained

    def hours(self, share: float) -> float:
        """Return the accelerator hours of the sweep if trials run this share of their epochs; confirmations run all."""
        seconds = self.trials * fmean(self.trial_seconds(grid, share=share) for grid in self.grids)
        seconds += self.confirmations * fmean(map(self.trial_seconds, self.grids))
        return seconds * self.accelerators_of_a_trial / 3600

    @property
    def usable(self) -> float:
        """Accelerators that the sweep keeps busy."""
        most = self.spec.concurrency * self.accelerators_of_a_trial
        return most if self.accelerator.gpus is None else min(most, self.accelerator.gpus)

    def wall_seconds(self, share: float) -> float:
        """Return the seconds until the end of the sweep, without its baselines."""
        return self.once_seconds + self.hours(share) * 3600 / self.usable

    def flops(self, share: float) -> float:
        """Return the FLOPs of all training."""
        epochs = self.epochs * (self.trials * share + self.confirmations)
        images = epochs * self.steps_per_epoch * self.batch_size
        return images * fmean(grid.cost.flops for grid in self.grids)

    @property
    def checkpoint_bytes(self) -> float:
        """Bytes of the checkpoints: one per trial and confirmation, with the networks of its best epoch."""
        each = fmean(grid.cost.checkpoint_bytes + grid.cost.export_bytes for grid in self.grids)
        return (self.trials + self.confirmations) * each

    @property
    def artifact_bytes(self) -> float:
        """Bytes of the compressors and decoders of complete trials, in the sweep's directory and again in MLflow."""
        return 2 * (self.trials + self.confirmations) * fmean(grid.cost.export_bytes for grid in self.grids)

    @property
    def driver_bytes(self) -> float:
        """Memory of fitting the baselines at the widest window: regressions in float64, and a sample of windows."""
        shape, smallest = self.tokens.shape, min(grid.grid for grid in self.grids)
        width = math.ceil(shape.token_grid / smallest) ** 2 * shape.dim
        sample = 4 * width * smallest**2 * min(MAX_FITTED, self.tokens.train_images)
        second_moments = 8 * width**2 if width <= MAX_COVARIANCE else min(SVD_BYTES, sample)
        return REGRESSIONS * 8 * shape.dim * width + second_moments


def plan_sweep(spec: Spec, accelerator: Accelerator | None = None) -> SweepPlan:
    """Plan a sweep; nothing is encoded and nothing is written.

    Raises:
        ConfigError: a grid does not fit the tower.
        DataError: the tower or the images are neither on this machine nor of published size.

    Example:
        >>> plan_sweep(load_spec(Path("sweeps/demo.yaml"))).trials    # doctest: +SKIP
        12
    """
    accelerator, config = accelerator or Accelerator(), spec.base_config()
    tokens = plan_tokens(config, stores_place(spec.storage))
    for grid in spec.grids():
        check_output_grid(grid, tokens.shape.token_grid)
    left_out = check_space(spec)
    batch = min(config.training.batch_size, tokens.train_images)
    device = resolve_device(None if spec.resources.gpus_per_worker else "cpu")
    timed = accelerator.tflops is None
    measured = tokens.store if timed else None
    steps, grids = tokens.train_images // batch, []
    readings = Readings(spec, tokens, device=device, timed=timed)
    with _threads(spec.resources.cpus_per_worker):
        meter = StepMeter(tokens.shape, device=device, timed=timed, taught=readings.taught)
        costs = space_cost(spec, lambda one: meter(with_values(one, {"training.batch_size": batch})))
        reading = tokens.image_bytes / (accelerator.read_gbs * 1e9) if measured is None else read_seconds(measured)
        read = steps * batch * reading / spec.resources.workers
        for grid, cost in costs.items():
            step = accelerator.seconds(cost.flops * batch, cost.seconds)
            # Evaluation needs no teacher.
            alone = step - accelerator.seconds(cost.taught_flops * batch, cost.taught_seconds)
            if measured is None:
                held_out = min(MAX_IMAGES, tokens.val_images) * alone / batch
            else:
                held_out = evaluation_seconds(with_values(config, {GRID_KEY: grid}), measured, device=device)
            judged = readings.judged(grid)
            # Only rank 0 evaluates.
            first = held_out / _speed(spec, 1)
            seconds = {
                "step_seconds": step,
                "epoch_seconds": steps * step / _speed(spec, spec.resources.workers) + first + read,
                "last_seconds": min(MAX_TEST_IMAGES, tokens.train_images) * alone / batch / _speed(spec, 1),
                "start_seconds": first,
                "judged_seconds": accelerator.seconds(judged.flops, judged.seconds) / _speed(spec, 1),
            }
            grids.append(GridPlan(grid=grid, cost=cost, **seconds))
    # By the driver, which has the threads of its machine.
    once = readings.once(list(costs))
    trials = min(spec.trials, len(draw_points(spec))) if spec.sampler.kind == "grid" else spec.trials
    return SweepPlan(
        spec=spec,
        accelerator=accelerator,
        where=_where(device, accelerator, spec),
        tokens=tokens,
        grids=tuple(grids),
        trials=trials,
        confirmations=spec.most_confirmations,
        epochs=config.training.epochs,
        share=epochs_share(spec, trials),
        batch_size=batch,
        steps_per_epoch=steps,
        read_seconds=read,
        readings=readings,
        once_seconds=accelerator.seconds(once.flops, once.seconds),
        left_out=left_out,
        assumed=(*tokens.assumed, *_assumed(spec, accelerator, device, measured is not None, readings)),
    )


def _assumed(
    spec: Spec, accelerator: Accelerator, device: torch.device, measured: bool, readings: Readings
) -> Iterator[str]:
    """Yield what the plan assumes about speed; `measured` is whether a store at hand was read and judged."""
    if not measured:
        yield f"a worker reads {accelerator.read_gbs:g} GB of tokens per second (--read-gbs)"
        yield "the figures of an epoch take as long as training on as many images"
    yield "the last epoch's figures that train networks take as long as training on the images they learn from"
    if accelerator.tflops is not None:
        yield f"training reaches {accelerator.utilisation:.0%} of the peak (--utilisation)"
    elif spec.resources.gpus_per_worker and device.type == "cpu":
        yield "the spec asks for GPUs and this machine has none: the hours are those of its CPU; give --tflops"
    yield from readings.assumed
    yield f"a trial's processes take {START_SECONDS[spec.resources.runner]:.0f} s to start"


def _speed(spec: Spec, workers: int) -> float:
    """Return the speed relative to what was timed: several workers are faster, a share of a GPU is slower."""
    return workers * (spec.resources.gpus_per_worker or 1)


def _where(device: torch.device, accelerator: Accelerator, spec: Spec) -> str:
    if accelerator.tflops is not None:
        return f"{accelerator.tflops:g} TFLOP/s at {accelerator.utilisation:.0%}"
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{spec.resources.cpus_per_worker} CPU threads of this machine"


@contextmanager
def _threads(count: int) -> Iterator[None]:
    """Give torch as many threads as a worker will have."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)

"""One trial: a config and a token store in, a trained compressor and its figures out.

`run_trial` is the only training function: for one process, for the workers of a Ray `TorchTrainer`, for a sweep. It
reads nothing but its arguments and reports through `runtime` alone. Batches and noise are drawn from (seed, epoch or
step), so a resumed run sees what it would have seen uninterrupted, and every worker of a group takes its share of one
draw. A run of several workers equals that of one worker with the same global batch, up to the order of floating-point
sums, and another number of workers may resume it. Only rank 0 evaluates and writes.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tokconv.config.keys import flatten, to_dict
from tokconv.config.overrides import saved_values
from tokconv.config.tree import Config
from tokconv.errors import CheckpointError, ConfigError, DivergedError, StoreError, require_extra
from tokconv.evaluation.epochs import LOWEST_FVU, EpochRule
from tokconv.evaluation.evaluator import Figures
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.protocol import PROTOCOL, check_resumable
from tokconv.models.factorisation import check_rank
from tokconv.models.windows import Windows, check_output_grid
from tokconv.store.reader import TokenStore
from tokconv.store.sample import check_varied, check_windows
from tokconv.system.memory import keep_freed_memory
from tokconv.training import checkpoint as checkpoints
from tokconv.training.best import BestEpochs
from tokconv.training.held_out import BaselineSteps, HeldOutFigures, Judge
from tokconv.training.networks import network_arguments
from tokconv.training.runtime import Runtime
from tokconv.training.step import Teacher, Trainer, random_stream
from tokconv.training.workers import Workers

_EPOCH_STREAM = 1 << 31
"""Keeps the seeds of epoch orders apart from those of steps."""


@dataclass(frozen=True)
class TrialResult:
    """What a trial returns."""

    figures: Figures
    """Those of the epoch that `tokconv.export` writes: the best one by the first rule, the last one on other ranks."""
    history: list[Figures]
    """The figures of every epoch; the first are those of the start, epoch 0."""
    checkpoint: Path | None
    """The newest checkpoint, which also holds the best epochs; None on other ranks than 0."""


def run_trial(
    config: Config,
    store: TokenStore,
    runtime: Runtime,
    rules: Sequence[EpochRule] = (LOWEST_FVU,),
    *,
    baseline_steps: BaselineSteps = lambda done, total, what: None,
    judge: Judge | None = None,
    teacher: Teacher | None = None,
) -> TrialResult:
    """Train one compressor and evaluate it on held-out images at its start, epoch 0, and after every epoch.

    The best epochs are kept beside the newest one, and have the figures of a last epoch when the run ends.

    Args:
        config: checked (`tokconv.config.overrides`).
        store: shared, only read.
        runtime: device, workers, checkpoints, and where figures go.
        rules: which epochs are the best ones; a run that starts at a closed form is never worse than it by any of them.
        baseline_steps: called while figures of baselines are computed, as `baseline_figures` does with `steps`.
        judge: adds figures of its own to those of the last epoch, and of the best ones; to those of every epoch if a
            rule needs them.
        teacher: what `loss.weights.vlm` weighs; needed if that is above 0.

    Raises:
        ConfigError, StoreError: see `check_store` and `check_batch`.
        CheckpointError: the checkpoint to resume from belongs to another config, store or evaluation protocol.
        DivergedError: a loss, gradient or figure is not finite; raised on all workers, and no checkpoint holds it. The
            last checkpoint before it holds the best epochs so far.

    Example:
        >>> store = encode(compose(["data.subset=64"]))                                   # doctest: +SKIP
        >>> run_trial(compose(["training.epochs=2"]), store, LocalRuntime(Path("run")))   # doctest: +SKIP
    """
    keep_freed_memory()
    check_store(config, store)
    if config.loss.distribution == "sinkhorn" and config.loss.weights.distribution > 0:
        require_extra("sinkhorn", "geomloss")
    if config.loss.weights.vlm > 0 and teacher is None:
        raise ConfigError("loss.weights.vlm: is above 0, but nothing teaches; give run_trial a teacher, or set it to 0")
    batches = _Batches(config, store, runtime)
    epochs = config.training.epochs
    workers = Workers(runtime.rank, runtime.world_size)
    trainer = Trainer(
        config,
        store,
        device=runtime.device,
        wrap=runtime.wrap,
        total_steps=epochs * batches.steps_per_epoch,
        workers=workers,
        teacher=teacher,
    )
    history, best = _resume(config, store, runtime, trainer, rules)
    held_out = None
    if runtime.rank == 0:
        judges_epochs = not all(FIGURES[rule.figure].every_epoch for rule in rules)
        held_out = HeldOutFigures(trainer, store, baseline_steps, judge, judges_epochs=judges_epochs)
    path, first = runtime.latest_checkpoint() if history and runtime.rank == 0 else None, 0
    if history:
        first = int(history[-1]["epoch"]) + 1
        # The last report before the interruption may have been lost.
        runtime.report(history[-1], path, best.rows if first > epochs else {})
    for epoch in range(first, epochs + 1):
        start: Figures = {"epoch": 0, "epochs": epochs}
        figures = _train_epoch(trainer, batches, epoch, runtime) if epoch else start
        # The others wait for rank 0's figures: a run that ends must end on all of them.
        figures = workers.broadcast(figures if held_out is None else figures | held_out(full=epoch == epochs))
        _check_finite(figures, epoch * batches.steps_per_epoch)
        history.append(figures)
        if held_out is not None:
            best.offer(figures, trainer.judged)
            if epoch == epochs:
                best.judge(figures, trainer.judged, partial(held_out.of, full=True))
            state = checkpoint_state(config, store, held_out.baselines, history) | {"best": best.rows}
            state |= {} if teacher is None else {"teacher": teacher.name}
            place = runtime.checkpoint_dir(epoch)
            path = checkpoints.save(place, trainer.modules, trainer.optimizers, state, best.before(epoch))
        runtime.report(figures, path, best.rows if epoch == epochs else {})
    exported = history[-1] if held_out is None else best.rows.get(rules[0].figure, history[-1])
    return TrialResult(exported, history, path)


def checkpoint_state(
    config: Config, store: TokenStore, baselines: Mapping[str, Figures], history: Sequence[Figures]
) -> dict[str, Any]:
    """Return what a checkpoint records beside weights, as JSON values, without the best epochs."""
    return {
        "config": to_dict(config),
        "networks": network_arguments(config, store.token_grid, store.dim, store),
        "store_fingerprint": store.fingerprint,
        "protocol": PROTOCOL,
        "token_grid": store.token_grid,
        "dim": store.dim,
        "encoder": store.settings.encoder,
        "baselines": baselines,
        "history": history,
    }


def check_store(config: Config, store: TokenStore) -> None:
    """Check, before anything starts, that this config can be trained on this store.

    Raises:
        ConfigError: the output grid does not fit the token grid, or the rank the output grid.
        StoreError: the store has no training or no validation images, no variance, or a single window to learn from.
    """
    compressor = config.model.compressor
    check_output_grid(compressor.output_grid_size, store.token_grid)
    if compressor.kind == "adaptive" and compressor.rank is not None:
        check_rank(compressor.rank, Windows(store.token_grid, compressor.output_grid_size), store.dim)
    if not len(store.train_indices) or not len(store.val_indices):
        raise StoreError(f"{store.path}: needs training and validation images; encode more of them")
    check_varied(store)
    check_windows(store, compressor.output_grid_size)


def check_batch(batch_size: int, num_images: int, workers: int) -> int:
    """Return the images in a global batch: `training.batch_size`, or all training images if there are fewer.

    Raises:
        ConfigError: the batch cannot be split into equal parts for the workers of a trial.
    """
    total = min(batch_size, num_images)
    if total % workers:
        all_of_them = f" (there are {num_images} training images)" if num_images < batch_size else ""
        raise ConfigError(
            f"training.batch_size: got {batch_size}{all_of_them}; it is the batch of all workers together, and "
            f"{total} images are not a multiple of {workers} workers; choose one that is, or another resources.workers"
        )
    return total


class _Batches:
    """The training images in global batches, and this worker's share of each."""

    def __init__(self, config: Config, store: TokenStore, runtime: Runtime) -> None:
        self.store, self.seed, self.ahead = store, config.training.seed, runtime.device.type == "cuda"
        self.total = check_batch(config.training.batch_size, len(store.train_indices), runtime.world_size)
        self.size = self.total // runtime.world_size
        self.first = runtime.rank * self.size
        self.steps_per_epoch = len(store.train_indices) // self.total

    def epoch(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield images [b] and their tokens [b, N, C] in the order of this epoch, counted from 0; tokens are valid
        until the next batch is requested.

        A worker reads only its own part of each batch from the store. Images that do not fill a batch are left out of
        this epoch.
        """
        generator = random_stream(self.seed, _EPOCH_STREAM + epoch)
        order = self.store.train_indices[torch.randperm(len(self.store.train_indices), generator=generator)]
        batches = order[: self.steps_per_epoch * self.total].split(self.total)
        own = [batch[self.first : self.first + self.size] for batch in batches]
        return zip(own, self.store.batches(own, ahead=self.ahead), strict=True)


def _train_epoch(trainer: Trainer, batches: _Batches, epoch: int, runtime: Runtime) -> Figures:
    """Train one epoch, counted from 1, and return the means of its losses."""
    epochs, before = trainer.config.training.epochs, (epoch - 1) * batches.steps_per_epoch
    start, sums = time.monotonic(), defaultdict[str, Tensor](lambda: torch.zeros((), device=trainer.device))
    for step, (images, tokens) in enumerate(batches.epoch(epoch - 1), before):
        terms = trainer.step(tokens, step, images)
        runtime.progress(step + 1, epochs * batches.steps_per_epoch)
        for name, value in terms.items():
            sums[name] += value
    means = trainer.workers.mean(torch.stack(list(sums.values())))
    figures = {name: float(value) / batches.steps_per_epoch for name, value in zip(sums, means, strict=True)}
    seconds = time.monotonic() - start
    count = batches.steps_per_epoch * batches.total
    return {**figures, "epoch": epoch, "epochs": epochs, "train/images_per_second": count / seconds}


def _check_finite(figures: Figures, step: int) -> None:
    """Raise DivergedError if a figure is not finite: finite weights may be so large that their outputs are not."""
    for name, value in figures.items():
        if not math.isfinite(value):
            raise DivergedError(name, step)


def _resume(
    config: Config, store: TokenStore, runtime: Runtime, trainer: Trainer, rules: Sequence[EpochRule]
) -> tuple[list[Figures], BestEpochs]:
    """Restore networks and optimizers from the runtime's newest checkpoint; return the figures and best epochs so far.

    A checkpoint of an earlier version holds no best epochs; its own is then the first to compare with.
    """
    path = runtime.latest_checkpoint()
    if path is None:
        return [], BestEpochs(rules)
    saved = checkpoints.load(path)
    if saved.state["store_fingerprint"] != store.fingerprint:
        raise CheckpointError(f"{path}: was trained on another token store than {store.path}")
    check_resumable(saved.state, path)
    ours, theirs = flatten(to_dict(config)), saved_values(saved.state["config"])
    for key, value in ours.items():
        if not key.startswith("data.") and theirs.get(key) != value:
            raise CheckpointError(
                f"{path}: was trained with {key}={theirs.get(key)}, not {value}; use the same value or a new run"
            )
    if saved.state.get("teacher") != (None if trainer.teacher is None else trainer.teacher.name):
        raise CheckpointError(f"{path}: another model taught, or other prompts or images; use the same or a new run")
    saved.restore(trainer.modules)
    for name, optimizer in trainer.optimizers.items():
        try:
            optimizer.load_state_dict(saved.optimizers[name])
        except ValueError as error:
            raise CheckpointError(
                f"{path}: its {name} optimizer groups its parameters differently; start a new run"
            ) from error
    best = BestEpochs(rules, saved.best_rows, saved.best_weights())
    best.offer(saved.figures, trainer.judged)
    return list(saved.state["history"]), best

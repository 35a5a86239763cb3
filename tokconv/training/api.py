"""Training from Python: `tokconv.train`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol

from tokconv.config.tree import Config
from tokconv.errors import CheckpointError
from tokconv.evaluation.epochs import LOWEST_FVU, LOWEST_KL
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore
from tokconv.training.held_out import Judge
from tokconv.training.loop import TrialResult, run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of
from tokconv.training.step import Teacher


class JudgingTeacher(Teacher, Protocol):
    """A teacher, and the judge of what it has taught."""

    @property
    def judge(self) -> Judge:
        """The judge, on held-out images."""


def train(
    config: Config,
    store: TokenStore,
    run_dir: str | Path,
    *,
    device: str | None = None,
    resume: bool = False,
    on_epoch: Callable[[Figures], None] | None = None,
    teacher: JudgingTeacher | None = None,
) -> TrialResult:
    """Train one compressor in this process and evaluate it on held-out images after every epoch.

    Args:
        config: what to train, from `tokconv.compose`.
        store: the tokens, from `tokconv.encode` or `tokconv.TokenStore.open`; only read.
        run_dir: holds the newest checkpoint in `checkpoints/epoch-NNNN`; created if missing.
        device: where tensors live; None takes CUDA if there is one.
        resume: continue from the newest checkpoint in `run_dir`, if there is one.
        on_epoch: called with each epoch's figures, after its checkpoint is on disk.
        teacher: what `loss.weights.vlm` weighs, a `tokconv.exports.answers.teacher.VlmTeacher`; the best epoch is then
            the one of the lowest `vlm/kl`.

    Returns:
        The figures of the last epoch and of every epoch, and the checkpoint that `tokconv.export` takes.

    Raises:
        ConfigError, StoreError: the config does not fit the store; nothing has been trained or written.
        CheckpointError: `run_dir` holds checkpoints and `resume` is false, or they belong to another config, store or
            evaluation protocol.
        DivergedError: a loss, gradient or figure is not finite.

    Example:
        >>> config = tokconv.compose(["data.subset=64", "training.epochs=2"])       # doctest: +SKIP
        >>> result = tokconv.train(config, tokconv.encode(config), "runs/first")    # doctest: +SKIP
        >>> result.figures["val/fvu"]                                               # doctest: +SKIP
        0.0398
    """
    if not resume and checkpoints_of(Path(run_dir)):
        raise CheckpointError(
            f"{run_dir}: already holds checkpoints; continue with resume=True or choose another run_dir"
        )

    def on_report(figures: Metrics, checkpoint: Path | None) -> None:
        if on_epoch is not None:
            on_epoch(dict(figures))

    runtime = LocalRuntime(Path(run_dir), device=device, resume=resume, on_report=on_report)
    rule, judge = (LOWEST_FVU, None) if teacher is None else (LOWEST_KL, teacher.judge)
    return run_trial(config, store, runtime, (rule,), judge=judge, teacher=teacher)

"""What a training function may know about where it runs.

`tokconv.training.loop.run_trial` receives one `Runtime` and reports through it alone. `LocalRuntime` is a plain
process; the Ray runtimes live in `tokconv.sweep.trials.trial`, so that nothing below them knows that Ray exists.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

from tokconv.system.devices import resolve_device

if TYPE_CHECKING:
    import torch
    from torch import nn

Metrics = Mapping[str, float]


class Runtime(Protocol):
    """Where a trial runs: its device, its place among the workers, and where its results go."""

    rank: int
    world_size: int
    device: torch.device

    def wrap(self, module: nn.Module) -> nn.Module:
        """Return the module on this runtime's device; with several workers its gradients are averaged over them."""

    def checkpoint_dir(self, epoch: int) -> Path:
        """Return where rank 0 writes the checkpoint of this epoch; the directory does not exist yet."""

    def report(self, metrics: Metrics, checkpoint: Path | None, best: Mapping[str, Metrics]) -> None:
        """Report the figures of one epoch, from 0 on, and its checkpoint. Every rank calls it; only rank 0's values
        count.

        Args:
            best: with the last epoch: figure -> figures of the best epoch by it, in full.
        """

    def latest_checkpoint(self) -> Path | None:
        """Return the checkpoint to resume from, or None for a fresh start."""

    def progress(self, step: int, total: int) -> None:
        """Report how many steps of the run are done; called after every step."""


class LocalRuntime:
    """One process on one device; checkpoints in `run_dir/checkpoints/epoch-NNNN`, the newest kept: it also holds
    the weights of the best epoch.

    Args:
        run_dir: created if missing.
        device: where tensors live; None takes CUDA if there is one.
        on_report: called with each epoch's figures, after the checkpoint is on disk.
        on_progress: called after every step with (steps done, steps in all).
        resume: start from the newest checkpoint in `run_dir`, if there is one.
    """

    rank = 0
    world_size = 1

    def __init__(
        self,
        run_dir: Path,
        *,
        device: str | None = None,
        on_report: Callable[[Metrics, Path | None], None] = lambda metrics, checkpoint: None,
        on_progress: Callable[[int, int], None] = lambda step, total: None,
        resume: bool = False,
    ) -> None:
        self.run_dir = Path(run_dir)
        self.device = resolve_device(device)
        self._on_report, self._on_progress = on_report, on_progress
        self._resume = resume

    def wrap(self, module: nn.Module) -> nn.Module:
        return module.to(self.device)

    def checkpoint_dir(self, epoch: int) -> Path:
        return self.run_dir / "checkpoints" / epoch_directory(epoch)

    def report(
        self, metrics: Metrics, checkpoint: Path | None, best: Mapping[str, Metrics] = MappingProxyType({})
    ) -> None:
        if checkpoint is not None:
            for older in checkpoints_of(self.run_dir):
                if epoch_of(older.name) < epoch_of(checkpoint.name):
                    shutil.rmtree(older)
        self._on_report(metrics, checkpoint)

    def latest_checkpoint(self) -> Path | None:
        checkpoints = checkpoints_of(self.run_dir)
        return checkpoints[-1] if self._resume and checkpoints else None

    def progress(self, step: int, total: int) -> None:
        self._on_progress(step, total)


def epoch_directory(epoch: int) -> str:
    """Return the name of an epoch's checkpoint directory: epoch-0012."""
    return f"epoch-{epoch:04d}"


def epoch_of(name: str) -> int:
    """Return the epoch of a checkpoint directory's name, -1 for any other name.

    Checkpoints are compared by it: as names, epoch-10000 sorts before epoch-9999.
    """
    match = re.fullmatch(r"epoch-([0-9]+)", name)
    return int(match[1]) if match else -1


def checkpoints_of(run_dir: Path) -> list[Path]:
    """Return the checkpoints that a `LocalRuntime` left in its directory, oldest first."""
    found = (run_dir / "checkpoints").glob("epoch-*")
    return sorted((path for path in found if epoch_of(path.name) >= 0), key=lambda path: epoch_of(path.name))

"""Trials of several workers without Ray: processes that are connected by gloo and have a runtime of their own."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from tokconv.config.keys import to_dict
from tokconv.config.overrides import from_dict
from tokconv.config.tree import Config
from tokconv.errors import DivergedError
from tokconv.store.reader import TokenStore
from tokconv.training import checkpoint as checkpoints
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of


class ReadingStore(TokenStore):
    """A store that remembers the last indices it read, and can return a NaN to one rank."""

    last: list[int]
    poisoned = False

    def tokens(self, indices: Tensor, out: Tensor | None = None) -> Tensor:
        self.last = indices.tolist()
        tokens = super().tokens(indices, out)
        if self.poisoned:
            tokens[0, 0, 0] = float("nan")
        return tokens


class StoppedError(Exception):
    """The interruption of a run."""


class GroupRuntime(LocalRuntime):
    """A worker of a torch process group; every rank has its own run directory, which shows whether it wrote.

    Args:
        read: collects, step by step, the images that this worker read.
        interrupt_after: the epoch after whose report the run is interrupted.
    """

    def __init__(
        self, run_dir: Path, store: ReadingStore, read: list[list[int]], interrupt_after: int | None, resume: bool
    ) -> None:
        super().__init__(run_dir, device="cpu", resume=resume)
        self.rank, self.world_size = dist.get_rank(), dist.get_world_size()
        self._store, self._read, self._interrupt_after = store, read, interrupt_after

    def wrap(self, module: nn.Module) -> nn.Module:
        return DistributedDataParallel(module, find_unused_parameters=getattr(module, "leaves_unused", False))

    def report(
        self, metrics: Metrics, checkpoint: Path | None, best: Mapping[str, Metrics] = MappingProxyType({})
    ) -> None:
        super().report(metrics, checkpoint, best)
        if metrics["epoch"] == self._interrupt_after:
            raise StoppedError

    def progress(self, step: int, total: int) -> None:
        self._read.append(self._store.last)


def train_group(
    cases: Mapping[str, Config],
    store: TokenStore,
    out: Path,
    *,
    workers: int = 2,
    options: Mapping[str, Mapping[str, Any]] | None = None,
) -> Callable[[str, int], dict[str, Any]]:
    """Train the cases one after the other by one group of processes.

    Args:
        options: per case: `interrupt_after` an epoch, `poison_rank` with a NaN in its batches, or the run directory to
            `resume`.

    Returns:
        A function of (case, rank) that returns the history, the error and the images read.
    """
    plain = {name: to_dict(config) for name, config in cases.items()}
    mp.spawn(_worker, args=(workers, plain, str(store.path), str(out), dict(options or {})), nprocs=workers)
    return lambda name, rank: torch.load(out / f"{name}-{rank}.pt", weights_only=True)


def run_dir(out: Path, name: str, rank: int) -> Path:
    return out / f"{name}-rank-{rank}"


def weights(directory: Path) -> dict[str, Tensor]:
    """Return the weights of the newest checkpoint in a run directory."""
    return checkpoints.load(checkpoints_of(directory)[-1]).weights


def _worker(
    rank: int,
    count: int,
    cases: dict[str, dict[str, Any]],
    store_path: str,
    out: str,
    options: dict[str, dict[str, Any]],
) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{out}/rendezvous",
        rank=rank,
        world_size=count,
        # A worker that waits in vain must fail the test, not block it.
        timeout=datetime.timedelta(seconds=60),
    )
    for name, config in cases.items():
        chosen = options.get(name, {})
        store, read, error = ReadingStore.open(store_path), [], None
        store.poisoned = chosen.get("poison_rank") == rank
        # To resume, every rank reads the checkpoint of rank 0 of the earlier run.
        directory = Path(chosen.get("resume", run_dir(Path(out), name, rank)))
        runtime = GroupRuntime(directory, store, read, chosen.get("interrupt_after"), "resume" in chosen)
        history: list[dict[str, float]] = []
        try:
            history = run_trial(from_dict(config), store, runtime).history
        except (DivergedError, StoppedError) as raised:
            error = repr(raised)
        torch.save({"history": history, "read": read, "error": error}, f"{out}/{name}-{rank}.pt")
    dist.destroy_process_group()

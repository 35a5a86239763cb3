"""One trial on Ray: the Tune function, the `TorchTrainer` it may start, and the runtimes `run_trial` sees there.

`trial_function` runs in a Tune actor. With runner torch_trainer it drives a `TorchTrainer` whose workers run
`train_worker`; with runner inline it runs the same `run_trial` itself, which saves several seconds of process starts
a trial.

The processes that only wait for a `TorchTrainer`'s workers must not hold torch, hence the imports in functions.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray.train
import ray.tune
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY, TuneReportCallback

from tokconv.errors import DivergedError, SweepError
from tokconv.overrides import from_dict, with_values
from tokconv.runtime import LocalRuntime, Metrics, Runtime
from tokconv.sweep.outcome import FAILURE
from tokconv.sweep.process_group import ProcessGroup, TorchTrainer
from tokconv.sweep.spec import Resources

if TYPE_CHECKING:
    import torch
    from torch import nn

DRIVER_CPUS = 0.01
"""A trial's driver only waits. With a whole CPU each, as many drivers as CPUs leave none for their workers and all wait
for ever; 0 is not allowed."""


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a sweep share, ready to be sent to other machines."""

    base: Mapping[str, Any]
    """The base config as plain dictionaries."""
    store: str
    trials_dir: str
    """On a file system that every node sees."""
    resources: Resources


def trial_function(config: dict[str, Any], job: TrialJob) -> None:
    """The Tune function. `config` is `{"uid": ..., "values": {dotted key: value}}`."""
    if job.resources.runner == "inline":
        _run(config, job, _inline_runtime(config["uid"], job), ray.tune.report)
        return
    resources = job.resources
    trainer = TorchTrainer(
        train_worker,
        train_loop_config={"trial": config, "job": job},
        scaling_config=ray.train.ScalingConfig(
            num_workers=resources.workers,
            use_gpu=resources.gpus_per_worker > 0,
            resources_per_worker=worker_resources(resources),
        ),
        run_config=ray.train.RunConfig(
            # Only the uid: a resumed trial finds its own Train run, and its checkpoints, by this name.
            name=config["uid"],
            storage_path=job.trials_dir,
            callbacks=[TuneReportCallback()],  # type: ignore[list-item]  # mypy reads Train v1's RunConfig
            failure_config=ray.train.FailureConfig(max_failures=1),
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
        ),
        backend_config=ProcessGroup(backend="nccl" if resources.gpus_per_worker > 0 else "gloo"),
    )
    trainer.fit()


def train_worker(loop_config: dict[str, Any]) -> None:
    """Runs in every worker of the `TorchTrainer`."""
    _run(loop_config["trial"], loop_config["job"], TrainRuntime(), ray.train.report)


def worker_resources(resources: Resources) -> dict[str, float]:
    """CPUs and GPUs of one worker. The driver's share is taken off, so that N trials of one CPU fit on N CPUs."""
    wanted = {"CPU": resources.cpus_per_worker - DRIVER_CPUS * 2}
    if resources.gpus_per_worker > 0:
        wanted["GPU"] = resources.gpus_per_worker
    return wanted


def tune_resources(resources: Resources) -> dict[str, float]:
    """What Tune reserves for the Tune function itself."""
    if resources.runner == "torch_trainer":
        return {"CPU": DRIVER_CPUS}
    wanted: dict[str, float] = {"CPU": resources.cpus_per_worker}
    if resources.gpus_per_worker > 0:
        wanted["GPU"] = resources.gpus_per_worker
    return wanted


class TrainRuntime:
    """A worker of a Ray Train group (`tokconv.runtime.Runtime`)."""

    def __init__(self) -> None:
        import ray.train.torch

        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._scratch = tempfile.TemporaryDirectory(prefix="tokconv-")
        self._resumed = Path(self._scratch.name) / "resumed"
        self._resumed_from = ""

    def wrap(self, module: nn.Module) -> nn.Module:
        import ray.train.torch

        unused = {"find_unused_parameters": True} if getattr(module, "leaves_unused", False) else None
        wrapped: nn.Module = ray.train.torch.prepare_model(module, parallel_strategy_kwargs=unused)
        return wrapped

    def checkpoint_dir(self, epoch: int) -> Path:
        return Path(self._scratch.name) / f"epoch-{epoch:04d}"

    def report(self, metrics: Metrics, checkpoint: Path | None) -> None:
        if checkpoint is None:
            ray.train.report(dict(metrics))
        elif checkpoint == self._resumed:
            # It is in storage already: name it, do not upload it again.
            ray.train.report({**metrics, CHECKPOINT_PATH_KEY: self._resumed_from})
        else:
            kept = ray.train.Checkpoint.from_directory(str(checkpoint))
            ray.train.report(dict(metrics), checkpoint=kept, delete_local_checkpoint_after_upload=True)

    def progress(self, step: int, total: int) -> None:
        """Nothing: the sweep's display counts epochs."""

    def latest_checkpoint(self) -> Path | None:
        found = ray.train.get_checkpoint()
        if found is None:
            return None
        self._resumed_from = found.path
        if not self._resumed.exists():
            found.to_directory(str(self._resumed))
        return self._resumed


def _inline_runtime(uid: str, job: TrialJob) -> LocalRuntime:
    def report(metrics: Metrics, checkpoint: Path | None) -> None:
        ray.tune.report({**metrics, CHECKPOINT_PATH_KEY: str(checkpoint)})

    device = "cuda" if job.resources.gpus_per_worker > 0 else "cpu"
    return LocalRuntime(Path(job.trials_dir) / uid, device=device, on_report=report, resume=True)


def _run(trial: Mapping[str, Any], job: TrialJob, runtime: Runtime, report_failure: Callable[[Any], None]) -> None:
    """`run_trial`; a divergence is a result, not an error that Ray would retry."""
    import torch

    from tokconv.store import TokenStore
    from tokconv.train import run_trial

    torch.set_num_threads(job.resources.cpus_per_worker)
    config = with_values(from_dict(job.base), trial["values"])
    try:
        run_trial(config, TokenStore.open(Path(job.store)), runtime)
    except DivergedError as error:
        report_failure({FAILURE: str(error)})


def check_resources(resources: Resources) -> None:
    """Refuse a trial that this machine can never hold, instead of waiting for ever.

    Raises:
        SweepError: fewer CPUs or GPUs than the workers of one trial need.
    """
    available = ray.cluster_resources()
    for name, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        wanted = getattr(resources, key) * resources.workers
        if wanted > available.get(name, 0):
            raise SweepError(
                f"resources.{key}: one trial needs {wanted:g} {name}s, this machine has {available.get(name, 0):g}; "
                "lower it, or resources.workers"
            )

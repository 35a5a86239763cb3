"""One trial on Ray: the Tune function, the `TorchTrainer` it may start, and the runtimes that `run_trial` gets there.

`trial_function` runs in a Tune actor. With runner torch_trainer it drives a `TorchTrainer` whose workers run
`train_worker`; with runner inline it calls the same `run_trial` itself, which saves several seconds of process starts
per trial.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import ray.train
import ray.train.torch
import ray.tune
import torch
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from torch import nn

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.errors import ConfigError, DivergedError, MissingExtraError, SweepError, first_line
from tokconv.evaluation.epochs import LOWEST_FVU, EpochRule
from tokconv.exports.answers.last_epoch import JudgeSettings, LastEpochJudge, open_teacher
from tokconv.store.remote import StorePlace
from tokconv.sweep.record.figures import BEST
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.record.remote_checkpoints import RemoteCheckpoints
from tokconv.sweep.spec.sections import Resources
from tokconv.sweep.trials.trainer import StoreTrainer, run_trainer
from tokconv.sweep.trials.watchdog import Watchdog
from tokconv.system.ray_cluster import DRIVER_RESOURCE
from tokconv.system.storage import is_url
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime, Metrics, Runtime, epoch_directory

DRIVER_CPUS = 0.01
"""CPUs of a trial's driver, which only waits. With a whole CPU each, as many drivers as CPUs would leave none for their
workers and wait for ever; 0 is not allowed."""

WORKER_LOSSES = 3
"""How often a `TorchTrainer` starts its workers again by itself before Tune runs the trial again."""


@dataclass(frozen=True)
class TrialJob:
    """What all trials of a sweep share, ready to be sent to other machines."""

    base: Config
    store: StorePlace
    trials_dir: str
    """A directory that every node sees, or a URL (`tokconv.sweep.record.remote_checkpoints`)."""
    resources: Resources
    best: Mapping[int, tuple[EpochRule, ...]] = field(default_factory=dict)
    """Output grid -> the rules by which a trial keeps its best epochs; a grid without any keeps the lowest fvu."""
    judge: JudgeSettings | None = None
    """The vision-language model that judges the last epoch; None for none."""


def trial_function(config: dict[str, Any], job: TrialJob) -> None:
    """Run one trial as a Tune function. `config` is `{"uid": ..., "values": {dotted key: value}}`."""
    with tempfile.TemporaryDirectory(prefix="tokconv-") as scratch:
        if job.resources.runner == "inline":
            with Watchdog(job.resources.trial_timeout) as watchdog:
                _run(config, job, _InlineRuntime(config["uid"], job, Path(scratch), watchdog), ray.tune.report)
        else:
            # Checkpoints at a URL do not pass through Ray Train; nothing else that it writes is needed afterwards.
            _run_torch_trainer(config, job, scratch if is_url(job.trials_dir) else job.trials_dir)


def _run_torch_trainer(config: dict[str, Any], job: TrialJob, storage: str) -> None:
    """Run a `TorchTrainer` to its end."""
    resources = job.resources

    def trainer_with(callback: ray.train.UserCallback) -> StoreTrainer:
        return StoreTrainer(
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
                storage_path=storage,
                callbacks=[callback],  # type: ignore[list-item]  # mypy reads Train v1's RunConfig
                failure_config=ray.train.FailureConfig(max_failures=WORKER_LOSSES),
                checkpoint_config=ray.train.CheckpointConfig(num_to_keep=1),
            ),
            torch_config=ray.train.torch.TorchConfig(backend="nccl" if resources.gpus_per_worker > 0 else "gloo"),
        )

    run_trainer(trainer_with, resources.trial_timeout)


def train_worker(loop_config: dict[str, Any]) -> None:
    """Train the trial in one worker of the `TorchTrainer`."""
    trial, job = loop_config["trial"], loop_config["job"]
    _run(trial, job, TrainRuntime(f"{job.trials_dir}/{trial['uid']}"), ray.train.report)


def worker_resources(resources: Resources, spared: float = DRIVER_CPUS * 2) -> dict[str, float]:
    """Return the CPUs and GPUs of one worker, less the driver's share, so that N trials of one CPU fit on N CPUs."""
    wanted = {"CPU": resources.cpus_per_worker - spared}
    if resources.gpus_per_worker > 0:
        wanted["GPU"] = resources.gpus_per_worker
    return wanted


def tune_resources(resources: Resources) -> dict[str, float]:
    """Return what Tune reserves for the Tune function itself.

    A driver that is lost takes its trial's workers with it, so it belongs on a node that stays: if some nodes have the
    resource `tokconv_driver`, drivers go there and nowhere else.
    """
    if resources.runner == "torch_trainer":
        return {DRIVER_RESOURCE: 1} if DRIVER_RESOURCE in ray.cluster_resources() else {"CPU": DRIVER_CPUS}
    return worker_resources(resources, spared=0)


class TrainRuntime:
    """A worker of a Ray Train group (`tokconv.training.runtime.Runtime`).

    Args:
        place: where the trial's checkpoints go; at a URL they are kept without Ray Train's help.
    """

    def __init__(self, place: str) -> None:
        context = ray.train.get_context()
        self.rank: int = context.get_world_rank()
        self.world_size: int = context.get_world_size()
        self.device: torch.device = ray.train.torch.get_device()
        self._scratch = tempfile.TemporaryDirectory(prefix="tokconv-")
        self._resumed = Path(self._scratch.name) / "resumed"
        self._resumed_from = ""
        self._remote = RemoteCheckpoints(place, Path(self._scratch.name)) if is_url(place) else None

    def wrap(self, module: nn.Module) -> nn.Module:
        unused = {"find_unused_parameters": True} if getattr(module, "leaves_unused", False) else None
        return ray.train.torch.prepare_model(module, parallel_strategy_kwargs=unused)

    def checkpoint_dir(self, epoch: int) -> Path:
        return Path(self._scratch.name) / epoch_directory(epoch)

    def report(self, metrics: Metrics, checkpoint: Path | None, best: Mapping[str, Metrics]) -> None:
        result: dict[str, Any] = {**metrics, BEST: dict(best)} if best else dict(metrics)
        if checkpoint is None:
            ray.train.report(result)
        elif self._remote is not None:
            url = self._remote.keep(checkpoint)
            shutil.rmtree(checkpoint)
            ray.train.report({**result, CHECKPOINT_PATH_KEY: url})
        elif checkpoint == self._resumed:
            # It is already in storage: name it instead of uploading it again.
            ray.train.report({**result, CHECKPOINT_PATH_KEY: self._resumed_from})
        else:
            saved = ray.train.Checkpoint.from_directory(str(checkpoint))
            ray.train.report(result, checkpoint=saved, delete_local_checkpoint_after_upload=True)

    def progress(self, step: int, total: int) -> None:
        """Do nothing: the sweep's display counts epochs."""

    def latest_checkpoint(self) -> Path | None:
        if self._remote is not None:
            return self._remote.latest()
        found = ray.train.get_checkpoint()
        if found is None:
            return None
        self._resumed_from = found.path
        if not self._resumed.exists():
            found.to_directory(str(self._resumed))
        return self._resumed


class _InlineRuntime(LocalRuntime):
    """The process of the Tune function itself, whose watchdog every report feeds."""

    def __init__(self, uid: str, job: TrialJob, scratch: Path, watchdog: Watchdog) -> None:
        place = f"{job.trials_dir}/{uid}"
        device = "cuda" if job.resources.gpus_per_worker > 0 else "cpu"
        self._remote = RemoteCheckpoints(place, scratch / "checkpoints") if is_url(place) else None
        self._watchdog = watchdog
        if self._remote is not None:
            self._remote.latest()
        super().__init__(Path(place) if self._remote is None else scratch, device=device, resume=True)

    def report(
        self, metrics: Metrics, checkpoint: Path | None, best: Mapping[str, Metrics] = MappingProxyType({})
    ) -> None:
        super().report(metrics, checkpoint, best)
        saved = str(checkpoint) if self._remote is None or checkpoint is None else self._remote.keep(checkpoint)
        self._watchdog.feed()
        result: dict[str, Any] = {**metrics, BEST: dict(best)} if best else dict(metrics)
        ray.tune.report({**result, CHECKPOINT_PATH_KEY: saved})


def _run(trial: Mapping[str, Any], job: TrialJob, runtime: Runtime, report_failure: Callable[[Any], None]) -> None:
    """Call `run_trial`; divergence, lack of memory and a wrong config are results, not errors that Ray would retry."""
    torch.set_num_threads(job.resources.cpus_per_worker)
    try:
        config = with_values(job.base, trial["values"])
        rules = job.best.get(config.model.compressor.output_grid_size, (LOWEST_FVU,))
        store = job.store.open()
        judge = None if job.judge is None else LastEpochJudge(store, job.judge, runtime.device)
        run_trial(config, store, runtime, rules, judge=judge, teacher=open_teacher(config, store, runtime.device))
    except (ConfigError, MissingExtraError, DivergedError) as error:
        report_failure({FAILURE: str(error)})
    except (torch.OutOfMemoryError, MemoryError) as error:
        if runtime.world_size > 1:  # the other workers do not know, and would wait for this one's report
            raise
        report_failure({FAILURE: f"out of memory ({first_line(error)[:200]}); lower training.batch_size or the widths"})


def check_resources(resources: Resources, *, private: bool) -> None:
    """Refuse a trial that this machine can never hold, instead of waiting for ever; a cluster may grow, so only warn.

    Raises:
        SweepError: the private cluster has fewer CPUs or GPUs than the workers of one trial need.
    """
    available = ray.cluster_resources()
    for name, key in (("CPU", "cpus_per_worker"), ("GPU", "gpus_per_worker")):
        wanted, there = getattr(resources, key) * resources.workers, available.get(name, 0)
        if wanted <= there:
            continue
        if private:
            raise SweepError(
                f"resources.{key}: one trial needs {wanted:g} {name}s, this machine has {there:g}; "
                "lower it, or resources.workers"
            )
        print(
            f"resources.{key}: one trial needs {wanted:g} {name}s, the cluster has {there:g} now; trials wait until it "
            "has grown (ray status shows its autoscaler)",
            flush=True,
        )

"""Images to a token store by several encoders: a pool of Ray Data actors, on one machine or many.

The unit of work is a shard. An actor reads, encodes and writes a whole shard, with the batches that a single process
would use, so that the store has the same bits either way. Only numbers travel between the processes. An actor holds one
shard and a few batches; the driver holds the store's lock and writes the index at the end. If an actor dies, its shard
is encoded again, by the restarted actor or by another one; finished shards are not.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.encoding.encoders import Encoders
from tokconv.encoding.job import EncodeJob, open_job
from tokconv.encoding.pipeline import OnOpened, OnProgress, encode_job
from tokconv.encoding.shards import CountImages, ShardEncoder
from tokconv.errors import ConfigError, DataError, StoreError, TokconvError, import_extra
from tokconv.store.format import SETTINGS, read_header, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.system.files import local_path
from tokconv.system.ray_cluster import ray_cluster

MAX_DEATHS = 5
"""The encoders that may die on one shard before the encode gives up; Ray Data itself would go on for ever."""
ERRORS: dict[str, type[TokconvError]] = {"ConfigError": ConfigError, "DataError": DataError, "StoreError": StoreError}


def encode_with_pool(
    config: Config,
    encoders: Encoders,
    progress: OnProgress | None = None,
    opened: OnOpened | None = None,
    *,
    retry_skipped: bool = True,
) -> TokenStore:
    """Return the token store of this config as `encode` does, but encode it with a pool of encoders.

    On the same kind of device the store is the same, bit for bit. The pool runs on the cluster that RAY_ADDRESS names,
    else on a private one on this machine. With several machines, images and store have to be on a file system that all
    of them see.

    Args:
        progress: called after every shard.
        opened: as for `encode`.
        retry_skipped: as for `encode`; this process encodes such images, since there are few.

    Raises:
        DataError, StoreError: as `encode`; encoders died on one shard too often.
        ConfigError: as `encode`; this machine can never hold the pool.
        ClusterError: RAY_ADDRESS names a cluster that does not answer.
        MissingExtraError: Ray is not installed.
    """
    for module in ("ray", "pyarrow", "pandas"):
        import_extra(module, "ray")
    config = _with_absolute_paths(config)
    job = open_job(config)
    job = dataclasses.replace(job, path=job.path.resolve())
    if opened is not None:
        opened(job)

    def write(job: EncodeJob, writer: StoreWriter, missing: Sequence[int], count: CountImages) -> None:
        # Every Ray Data pool starts by logging, as an error, that restarted actors need their arguments.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with ray_cluster(dashboard=False) as private:
            _encode_shards(config, job, _with_gpus_decided(encoders, private), missing, count)
        writer.remove_leftovers()

    return encode_job(config, job, write, progress, retry_skipped=retry_skipped)


def _with_absolute_paths(config: Config) -> Config:
    """Return the config with absolute paths: another process may run in another directory."""
    paths = {"data.root": config.data.root, "model.clip.model_name": config.model.clip.model_name}
    found = {key: local_path(value) for key, value in paths.items() if value}
    return with_values(config, {key: str(path.resolve()) for key, path in found.items() if path.exists()})


def _with_gpus_decided(encoders: Encoders, private: bool) -> Encoders:
    """Return the pool with its GPUs decided. A private cluster cannot grow, so it must hold the pool from the start."""
    import ray

    available = ray.cluster_resources()
    gpus = encoders.gpus if encoders.gpus is not None else float(available.get("GPU", 0) > 0)
    for name, option, each in (("CPU", "cpus", float(encoders.cpus)), ("GPU", "gpus", gpus)):
        needed, there = each * encoders.least, available.get(name, 0.0)
        if private and needed > there:
            raise ConfigError(
                f"--encoders: {encoders.least} with {each:g} {name}s each need {needed:g}, this machine has {there:g}; "
                f"lower it, or --{option}-per-encoder, or name a cluster in RAY_ADDRESS"
            )
    return dataclasses.replace(encoders, gpus=gpus)


def _encode_shards(
    config: Config, job: EncodeJob, encoders: Encoders, missing: Sequence[int], count: CountImages
) -> None:
    """Encode every missing shard in the pool, and count the images of each as soon as it is done."""
    import ray
    import ray.data
    from ray.exceptions import RayError

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)  # its messages stay in Ray's log files
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Sent once and read from shared memory: a source of a million images is too large to send with every call.
    arguments = ray.put((config, job))
    done = (
        # One block per shard: Ray Data hands out blocks to actors, and returns their rows when a block is done.
        ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
        .map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=encoders.least,
                max_size=encoders.most,
                # One shard waits while one is encoded: an actor never idles, and few shards queue behind a slow one.
                max_tasks_in_flight_per_actor=2,
            ),
            fn_constructor_args=([arguments], encoders),
            num_cpus=encoders.cpus,
            num_gpus=encoders.gpus or None,
        )
        .iter_rows()
    )
    try:
        for row in done:
            if row["error"]:
                raise ERRORS[row["kind"]](row["error"])
            count(int(row["images"]), int(row["skipped"]))
    except RayError as error:
        # The last line of Ray's error is the cause; the first one only names the task.
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise DataError(
            f"the encoders failed ({reason}); every finished shard is kept, and the same command resumes"
        ) from error


class _Actor:
    """An actor of the pool."""

    def __init__(self, arguments: Sequence[Any], encoders: Encoders) -> None:
        import ray

        torch.set_num_threads(encoders.cpus)
        config, job = ray.get(arguments[0])
        self.worker = ShardWorker(config, job, torch.device("cuda" if encoders.gpus else "cpu"))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {name: [value] for name, value in self.worker.report(int(batch["shard"][0])).items()}


class ShardWorker:
    """One of several encoders of a store; the process that holds the store's lock hands out the shards.

    Args:
        config, job, device: as `ShardEncoder`; the tower is loaded for the first shard that is missing.
    """

    def __init__(self, config: Config, job: EncodeJob, device: torch.device) -> None:
        self.config, self.job, self.device = config, job, device
        self.encoder: ShardEncoder | None = None

    def report(self, number: int) -> dict[str, Any]:
        """Write a shard. Errors meant for the user return as `kind` and `error`, since Ray would wrap an exception."""
        row: dict[str, Any] = {"shard": number, "images": 0, "skipped": 0, "kind": "", "error": ""}
        try:
            row["images"], row["skipped"] = self._encode(number)
        except (TokconvError, OSError) as error:
            kind = next((name for name, cls in ERRORS.items() if isinstance(error, cls)), "StoreError")
            row |= {"kind": kind, "error": str(error)}
        return row

    def _encode(self, number: int) -> tuple[int, int]:
        """Write a shard if it is missing; return its images, and how many of them could not be read."""
        job = self.job
        if not (job.path / SETTINGS).is_file():
            raise StoreError(
                f"data.store: {job.path} is missing on {os.uname().nodename}; with encoders on several machines it has "
                "to be on a file system that all of them see"
            )
        images, path = len(job.settings.shard_items(number)), job.path / shard_name(number)
        try:
            return images, len(read_header(path, job.settings, number).skipped)
        except StoreError:  # usually it is missing; it exists if an actor died after writing and before reporting it
            self.encoder = self.encoder or ShardEncoder(self.config, job, self.device)
        died = list(job.path.glob(f".shard-{number:05d}-*.tmp"))
        if len(died) >= MAX_DEATHS:
            raise DataError(
                f"{len(died)} encoders died on shard {number} of {job.path}; every finished shard is kept, and the "
                "same command resumes; if memory ran out, lower data.encode_batch_size, data.num_workers or --encoders"
            )
        # A killed encoder leaves this file behind; the writer removes it with its other leftovers.
        marker = job.path / f".shard-{number:05d}-{uuid.uuid4().hex[:8]}.tmp"
        marker.touch()
        try:
            # The driver holds the store's lock on behalf of all its encoders.
            self.encoder.write(StoreWriter(job.path, job.settings), [number], lambda *_: None)
        finally:
            marker.unlink(missing_ok=True)
        return images, len(read_header(path, job.settings, number).skipped)

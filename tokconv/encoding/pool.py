"""Images to a token store by several encoders: shards streamed over a Ray Data pool of actors, on one machine or many.

The unit of work is a shard: an actor reads, encodes and writes the whole of it, batch by batch as one process would,
so that the store has the same bits whoever made it. Only numbers travel between the processes. An actor holds one shard
and a few batches; the driver holds the store's lock and writes the index at the end. When an actor dies, its shard is
encoded again, by itself restarted or by another one; what is written already is not.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.encoding.pipeline import Count, EncodeProgress, Job, ShardEncoder, complete, prepare_job
from tokconv.encoding.plan import Encoders
from tokconv.errors import ConfigError, DataError, StoreError, TokconvError, import_extra
from tokconv.store.format import SETTINGS, read_header, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.system.ray_cluster import ray_cluster

MAX_DEATHS = 5
"""Encoders that may die on one shard before the encode gives up; Ray Data itself would go on for ever."""
ERRORS: dict[str, type[TokconvError]] = {"ConfigError": ConfigError, "DataError": DataError, "StoreError": StoreError}


def encode_with_pool(
    config: Config, encoders: Encoders, progress: Callable[[EncodeProgress], None] | None = None
) -> TokenStore:
    """As `tokconv.encode`, with a pool of encoders; the same store, bit for bit, on the same kind of device.

    Runs on the cluster that RAY_ADDRESS names, else on a private one on this machine. On several machines images and
    store have to be on a file system that all of them see.

    Args:
        progress: called after every shard.

    Raises:
        DataError, ConfigError, StoreError: as `encode`; a pool that this machine can never hold; a shard on which
            encoders died too often.
        SweepError: RAY_ADDRESS names a cluster that does not answer.
        MissingExtraError: Ray is not installed.
    """
    for module in ("ray", "pyarrow", "pandas"):
        import_extra(module, "sweep")
    config = _anywhere(config)
    job = prepare_job(config)
    job = dataclasses.replace(job, path=job.path.resolve())

    def write(writer: StoreWriter, missing: Sequence[int], count: Count) -> None:
        # At its start every pool of Ray Data logs as an error that restarted actors need their arguments.
        os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        with ray_cluster(dashboard=False) as private:
            _stream(config, job, _fitting(encoders, private), missing, count)
        writer.remove_leftovers()

    return complete(config, job, write, progress)


def _anywhere(config: Config) -> Config:
    """The config with absolute paths: another process may stand in another directory."""
    paths = {"data.root": config.data.root, "model.clip.model_name": config.model.clip.model_name}
    found = {key: Path(value).expanduser() for key, value in paths.items() if value}
    return with_values(config, {key: str(path.resolve()) for key, path in found.items() if path.exists()})


def _fitting(encoders: Encoders, private: bool) -> Encoders:
    """The pool with its GPUs decided. A private cluster cannot grow, so it must hold the pool; another one may."""
    import ray

    has = ray.cluster_resources()
    gpus = encoders.gpus if encoders.gpus is not None else float(has.get("GPU", 0) > 0)
    for name, option, each in (("CPU", "cpus", float(encoders.cpus)), ("GPU", "gpus", gpus)):
        wanted, there = each * encoders.least, has.get(name, 0.0)
        if private and wanted > there:
            raise ConfigError(
                f"--encoders: {encoders.least} with {each:g} {name}s each need {wanted:g}, this machine has {there:g}; "
                f"lower it, or --{option}-per-encoder, or name a cluster in RAY_ADDRESS"
            )
    return dataclasses.replace(encoders, gpus=gpus)


def _stream(config: Config, job: Job, encoders: Encoders, missing: Sequence[int], count: Count) -> None:
    """Every missing shard through the pool, reported as it is done."""
    import ray
    import ray.data
    from ray.exceptions import RayError

    for handler in logging.getLogger("ray.data").handlers:
        if isinstance(handler, logging.StreamHandler):
            handler.setLevel(logging.ERROR)  # what it says stays in Ray's log files
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    # Sent once and read from shared memory: a source of a million images would be too much for every call.
    shipped = ray.put((config, job))
    done = (
        # A block a shard: blocks are what actors are given, and what is told when it is done.
        ray.data.from_items([{"shard": number} for number in missing], override_num_blocks=len(missing))
        .map_batches(
            _Actor,
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(
                min_size=encoders.least,
                max_size=encoders.most,
                # One waits while one is encoded: an actor is never idle, and few wait for a slow one at the end.
                max_tasks_in_flight_per_actor=2,
            ),
            fn_constructor_args=([shipped], encoders),
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
        reason = (str(error).strip().splitlines() or [type(error).__name__])[-1]
        raise DataError(
            f"the encoders failed ({reason}); every finished shard is kept, the same command goes on"
        ) from error


class _Actor:
    """An actor of the pool."""

    def __init__(self, shipped: Sequence[Any], encoders: Encoders) -> None:
        import ray

        torch.set_num_threads(encoders.cpus)
        config, job = ray.get(shipped[0])
        self.worker = ShardWorker(config, job, torch.device("cuda" if encoders.gpus else "cpu"))

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, list[Any]]:
        return {name: [value] for name, value in self.worker.report(int(batch["shard"][0])).items()}


class ShardWorker:
    """One of several encoders of a store; the process that holds the store's lock says which shards.

    Args:
        config, job, device: as `ShardEncoder`; the tower is loaded for the first shard that is not there.
    """

    def __init__(self, config: Config, job: Job, device: torch.device) -> None:
        self.config, self.job, self.device = config, job, device
        self.encoder: ShardEncoder | None = None

    def report(self, number: int) -> dict[str, Any]:
        """Write a shard. What is wrong for the user comes back as `kind` and `error`: Ray would wrap an exception."""
        row: dict[str, Any] = {"shard": number, "images": 0, "skipped": 0, "kind": "", "error": ""}
        try:
            row["images"], row["skipped"] = self._encode(number)
        except (TokconvError, OSError) as error:
            kind = next((name for name, cls in ERRORS.items() if isinstance(error, cls)), "StoreError")
            row |= {"kind": kind, "error": str(error)}
        return row

    def _encode(self, number: int) -> tuple[int, int]:
        """Images of the shard, and how many of them could not be read."""
        job = self.job
        if not (job.path / SETTINGS).is_file():
            raise StoreError(
                f"data.store: {job.path} is not there on {os.uname().nodename}; with encoders on several machines it "
                "has to be on a file system that all of them see"
            )
        images, path = len(job.settings.shard_items(number)), job.path / shard_name(number)
        try:
            return images, len(read_header(path, job.settings, number).skipped)
        except StoreError:  # not there yet: the usual case; it is when an actor died between writing and telling
            self.encoder = self.encoder or ShardEncoder(self.config, job, self.device)
        died = list(job.path.glob(f".shard-{number:05d}-*.tmp"))
        if len(died) >= MAX_DEATHS:
            raise DataError(
                f"{len(died)} encoders died on shard {number} of {job.path}; every finished shard is kept, the same "
                "command goes on; if memory ran out, lower data.encode_batch_size, data.num_workers or --encoders"
            )
        # What an encoder that is killed leaves behind; the writer removes it with its other leftovers.
        alive = job.path / f".shard-{number:05d}-{uuid.uuid4().hex[:8]}.tmp"
        alive.touch()
        try:
            # The driver holds the store's lock for all of its encoders.
            self.encoder.write(StoreWriter(job.path, job.settings), [number], lambda *_: None)
        finally:
            alive.unlink(missing_ok=True)
        return images, len(read_header(path, job.settings, number).skipped)

"""What an encode would take, before it starts: bytes, shards, and hours from a short calibration."""

from __future__ import annotations

import dataclasses
import math
import time

import torch

from tokconv.config.tree import Config
from tokconv.encoding.encoders import Encoders
from tokconv.encoding.existing import planned
from tokconv.encoding.job import EncodeJob, open_job
from tokconv.encoding.shards import ShardEncoder, readers_explained
from tokconv.errors import ConfigError, DataError, printable
from tokconv.store.format import image_bytes, pack
from tokconv.system.terminal import data_size, duration

CALIBRATION_SECONDS = 10.0
"""A calibration ends with the first batch that is done after this time; loading the weights does not count."""


def describe_plan(
    config: Config,
    *,
    device: torch.device,
    encoders: Encoders | None = None,
    images: int | None = None,
    images_per_second: float | None = None,
) -> str:
    """Return the text that `tokconv encode --plan` prints.

    Args:
        device: where the calibration runs.
        encoders: also plan for this pool.
        images: plan for this number of images like those of the source, instead of the source's own.
        images_per_second: the rate of one encoder; None measures it.

    Raises:
        DataError, ConfigError, StoreError: as `encode`.
    """
    for name, value in (("images", images), ("images-per-second", images_per_second)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name}: got {value:g}; must be greater than 0")
    job, complete = planned(open_job(config))
    settings = job.settings
    own = sum(not item.view for item in job.source.items)
    if images is None:
        what, state = f"{own} images", "complete already" if complete else "not yet encoded"
    else:
        # As many views an image as here: held-out images have one, and keep their share.
        settings = dataclasses.replace(settings, num_items=round(images * settings.num_items / own))
        what, state = f"as if there were {images} images", "a plan, not this store"
    if config.data.views > 1:
        what += f", {settings.num_items} with the views of those to train on,"
    size = settings.num_items * image_bytes(settings.token_grid, settings.dim, settings.dtype)
    notes = [f"{printable(config.data.root)}: {printable(note)}\n" for note in job.source.notes]
    first = "".join(notes) + (
        f"{printable(job.path)}: {what} x {settings.num_tokens} tokens, {data_size(size)} in "
        f"{settings.num_shards} shards ({state})"
    )
    if images is None and complete:
        return first
    how = "as given"
    if images_per_second is None:
        try:
            images_per_second, how = calibrate(config, job, device)
        except DataError as error:
            return f"{first}\nhours: not estimated ({error}); give the rate of one encoder: --images-per-second"
    seconds = settings.num_items / images_per_second
    one = (
        f"one encoder: {duration(seconds)} at {images_per_second:.3g} images/s ({how}), writing "
        f"{data_size(size / seconds)}/s"
    )
    return "\n".join([first, one, *([] if encoders is None else [_describe_pool(encoders, seconds, size)])])


@readers_explained()
def calibrate(config: Config, job: EncodeJob, device: torch.device) -> tuple[float, str]:
    """Measure one encoder, reading included, without writing anything: images per second, and how they were measured.

    Batches grow from one image to data.encode_batch_size while time is left, so that a slow machine is measured soon
    and a fast one at its final batch size. The rate is that of the largest batches; the first batch is a warm-up.

    Raises:
        DataError: no weights, none of the first images is readable, or a process that reads them was killed.
    """
    encoder = ShardEncoder(config, job, device)
    batches = _growing_batches(config.data.encode_batch_size, job.settings.num_items)
    times: dict[int, list[float]] = {}
    readable, start = 0, time.monotonic()
    last = start
    for number, (items, batch) in enumerate(zip(batches, encoder.read(batches), strict=True)):
        if batch.items:
            pack(encoder.encode(batch.loaded), job.settings.dtype)
            readable += len(batch.items)
        now = time.monotonic()
        if number > 0 or len(batches) == 1:
            times.setdefault(len(items), []).append(now - last)
        last = now
        if now - start > CALIBRATION_SECONDS and times:
            break
    if not readable:
        raise DataError("data: none of the first images could be read")
    size = max(times)
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU, threads: {torch.get_num_threads()}"
    )
    rate = size * len(times[size]) / sum(times[size])
    return rate, f"measured on {where}, batches of {size}: {len(times[size])}"


def _growing_batches(largest: int, num_items: int) -> list[range]:
    """Return disjoint batches of 1, 2, 4 ... images, then batches of the largest size."""
    batches: list[range] = []
    start, size = 0, 1
    while start + size <= num_items and len(batches) < 1000:
        batches.append(range(start, start + size))
        start, size = start + size, min(2 * size, largest)
    return batches


def _describe_pool(encoders: Encoders, seconds: float, size: int) -> str:
    """Describe several encoders by the rate of one. Encoders that share a GPU also share that rate."""
    gpus = encoders.gpus or 0.0
    share = min(1.0, gpus) if gpus else 1.0
    spent = seconds / (encoders.most * share)
    devices = f"{encoders.most * gpus:g} GPUs" if gpus else f"{encoders.most * encoders.cpus} CPUs"
    hours = f"{spent / 3600 * encoders.most * gpus:.3g} GPU hours, " if gpus else ""
    return (
        f"{encoders} encoders on {devices}: {duration(spent)}, {hours}writing {data_size(size / spent)}/s; "
        "if each has what the one above had, and storage keeps up"
    )

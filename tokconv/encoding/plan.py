"""What an encode would take before it starts: bytes, shards, and hours from a short calibration."""

from __future__ import annotations

import dataclasses
import math
import re
import time
from dataclasses import dataclass

import torch

from tokconv.config.tree import Config
from tokconv.encoding.pipeline import Job, ShardEncoder, plan_of, prepare_job
from tokconv.errors import ConfigError, DataError
from tokconv.store.format import image_bytes, pack
from tokconv.system.terminal import duration

CALIBRATION_SECONDS = 10.0
"""A calibration ends with the first batch after this; loading the weights is not in it."""
POOL = re.compile(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?")


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """A pool of encoders: from `least`, which start at once, to `most`, which shards that wait may call for.

    gpus: each one's share; 0.5 puts two on a GPU, so that one computes while the other reads. None is decided by the
    cluster: one each when it has GPUs, else none.
    cpus: each one's; its image readers (data.num_workers) share them.
    """

    least: int = 1
    most: int = 1
    gpus: float | None = None
    cpus: int = 1

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def parse_encoders(text: str, *, gpus: float | None = None, cpus: int = 1) -> Encoders:
    """`--encoders 4` or `--encoders 1-8`, with the share of each.

    Raises:
        ConfigError: not a count or a range of counts, a negative share, or more than one GPU but not whole ones.
    """
    match = POOL.fullmatch(text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < least <= most:
        raise ConfigError(f"--encoders: got {text!r}; write how many, as in 4, or the fewest and the most, as in 1-8")
    if gpus is not None and (not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(f"--gpus-per-encoder: got {gpus:g}; must be 0, a share of one as 0.5, or a whole number")
    if cpus < 1:
        raise ConfigError(f"--cpus-per-encoder: got {cpus}; must be at least 1")
    return Encoders(least=least, most=most, gpus=gpus, cpus=cpus)


def describe_plan(
    config: Config,
    *,
    device: torch.device,
    encoders: Encoders | None = None,
    images: int | None = None,
    images_per_second: float | None = None,
) -> str:
    """What `tokconv encode --plan` prints.

    Args:
        device: where the calibration runs.
        images: plan for so many images like those of the source, instead of its own.
        images_per_second: of one encoder; None measures it.

    Raises:
        DataError, ConfigError, StoreError: as `encode`.
    """
    for name, value in (("images", images), ("images-per-second", images_per_second)):
        if value is not None and not 0 < value < math.inf:
            raise ConfigError(f"--{name}: got {value:g}; must be greater than 0")
    job = prepare_job(config)
    found, settings = plan_of(job), job.settings
    if images is not None:
        settings = dataclasses.replace(settings, num_items=images)
    count = settings.num_items
    size = count * image_bytes(settings.token_grid, settings.dim, settings.dtype)
    if images is not None:
        what, state = f"as if there were {count} images", "a plan, not this store"
    else:
        what, state = f"{count} images", "complete already" if found.complete else "not yet encoded"
    lines = [
        f"{found.path}: {what} x {settings.num_tokens} tokens, {_bytes(size)} in {settings.num_shards} shards ({state})"
    ]
    if images is None and found.complete:
        return lines[0]
    how = "as given"
    if images_per_second is None:
        try:
            images_per_second, how = calibrate(config, job, device)
        except DataError as error:
            return f"{lines[0]}\nhours: not estimated ({error}); say how fast one encoder is: --images-per-second"
    seconds = count / images_per_second
    lines.append(
        f"one encoder: {duration(seconds)} at {images_per_second:.3g} images/s ({how}), "
        f"{_bytes(round(size / seconds))} written a second"
    )
    if encoders is not None:
        lines.append(_with_pool(encoders, seconds, size))
    return "\n".join(lines)


def calibrate(config: Config, job: Job, device: torch.device) -> tuple[float, str]:
    """Images a second of one encoder, reading them included, and how that was found; nothing is written.

    Batches grow from one image to data.encode_batch_size while time is left, so that a slow machine is told soon and a
    fast one is judged by what it will do. The rate is that of the largest batches; the first one only warms up.

    Raises:
        DataError: no weights, or no readable image among the first ones.
    """
    encoder = ShardEncoder(config, job, device)
    batches = _growing(config.data.encode_batch_size, job.settings.num_items)
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
    spent = sum(times[size])
    where = (
        torch.cuda.get_device_name(device) if device.type == "cuda" else f"a CPU, threads: {torch.get_num_threads()}"
    )
    return size * len(times[size]) / spent, f"measured on {where}, batches of {size}: {len(times[size])}"


def _growing(largest: int, num_items: int) -> list[range]:
    """Batches of 1, 2, 4 ... images up to the largest size, which goes on; none twice."""
    batches: list[range] = []
    start, size = 0, 1
    while start + size <= num_items and len(batches) < 1000:
        batches.append(range(start, start + size))
        start, size = start + size, min(2 * size, largest)
    return batches


def _with_pool(encoders: Encoders, seconds: float, size: int) -> str:
    """Several encoders at the rate of one. A share of a GPU is a share of its rate, however many share it."""
    gpus = encoders.gpus or 0.0
    share = min(1.0, gpus) if gpus else 1.0
    spent = seconds / (encoders.most * share)
    devices = f"{encoders.most * gpus:g} GPUs" if gpus else f"{encoders.most * encoders.cpus} CPUs"
    hours = f"{spent / 3600 * encoders.most * gpus:.3g} GPU hours, " if gpus else ""
    return (
        f"{encoders} encoders on {devices}: {duration(spent)}, {hours}{_bytes(round(size / spent))} written a second; "
        "if each has what the one above had, and storage keeps up"
    )


def _bytes(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e10 else f"{size / 1e6:.1f} MB"

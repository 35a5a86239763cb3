"""How many encoders share the work, and the CPUs and GPUs of each."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from tokconv.errors import ConfigError

COUNT_OR_RANGE = re.compile(r"([1-9]\d{0,5})(?:-([1-9]\d{0,5}))?")


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """A pool of encoders: `least` start at once, and waiting shards may raise their number to `most`.

    gpus: the GPUs per encoder; 0.5 puts two encoders on one GPU, so that one computes while the other reads. None means
        one GPU each if the cluster has GPUs, else none.
    cpus: the CPUs per encoder; its image readers (data.num_workers) share them.
    """

    least: int = 1
    most: int = 1
    gpus: float | None = None
    cpus: int = 1

    def __str__(self) -> str:
        return str(self.most) if self.least == self.most else f"{self.least} to {self.most}"


def parse_encoders(text: str, *, gpus: float | None = None, cpus: int = 1) -> Encoders:
    """Parse `--encoders 4` or `--encoders 1-8`, with the GPUs and CPUs per encoder.

    Raises:
        ConfigError: not a count or a range of counts, a negative share, or more than one GPU but not whole ones.
    """
    match = COUNT_OR_RANGE.fullmatch(text)
    least, most = (int(match[1]), int(match[2] or match[1])) if match else (0, 0)
    if not 0 < least <= most:
        raise ConfigError(f"--encoders: got {text!r}; write a number, as in 4, or the fewest and the most, as in 1-8")
    if gpus is not None and (not 0 <= gpus < math.inf or (gpus > 1 and gpus != int(gpus))):
        raise ConfigError(f"--gpus-per-encoder: got {gpus:g}; must be 0, a fraction such as 0.5, or a whole number")
    if cpus < 1:
        raise ConfigError(f"--cpus-per-encoder: got {cpus}; must be at least 1")
    return Encoders(least=least, most=most, gpus=gpus, cpus=cpus)

"""The accelerator that a plan is for."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tokconv.errors import ConfigError

UTILISATION = 0.3
READ_GBS = 2.0


@dataclass(frozen=True, kw_only=True)
class Accelerator:
    """The accelerator of a plan: described by its data sheet or, without `tflops`, this machine's device, timed."""

    tflops: float | None = None
    """Peak of one accelerator at the precision of training, in TFLOP/s."""
    utilisation: float = UTILISATION
    """Share of the peak that training reaches; small convolutions, norms and optimizers are bound by memory."""
    gpus: float | None = None
    """Number of accelerators; None: as many as the spec's concurrency can use."""
    read_gbs: float = READ_GBS
    """GB per second at which one worker reads tokens from a local disk or the page cache."""

    def __post_init__(self) -> None:
        for name in ("tflops", "utilisation", "gpus", "read_gbs"):
            value = getattr(self, name)
            if value is not None and not 0 < value < math.inf:
                raise ConfigError(f"--{name.replace('_', '-')}: got {value}; must be a number greater than 0")
        if self.utilisation > 1:
            raise ConfigError(f"--utilisation: got {self.utilisation}; it is a share of the peak, at most 1")

    def seconds(self, flops: float, timed: float | None) -> float:
        """Return the seconds of so many FLOPs: by the data sheet, or those that were timed on this machine's device."""
        if self.tflops is None:
            assert timed is not None
            return timed
        return flops / (self.tflops * 1e12 * self.utilisation)

"""Simulated trials: figures that are a plausible function of the searched values, and the duration of an epoch.

Every key has a best place in its range; fvu grows with the distance from it and falls over the epochs, swd trades off
against fvu along the first key, and small grids are worse at both. All follows from the seed and the trial's uid.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any

from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range

FLOOR = 0.05
DIVERGING = 0.03
"""Share of trials that diverge."""
SPREAD = 0.25
"""Standard deviation of the logarithm of a trial's duration."""
OTHERS = (
    *(f"val/{name}" for name in ("cosine", "cosine_centered", "knn_overlap", "cka", "probe_accuracy", "probe_kept")),
    *(
        f"val/{name}"
        for name in ("knn_overlap_halves", "cka_halves", "reader_accuracy", "reader_kept", "reader_sampled")
    ),
    *("val/mmd", "val/mmd_floor", "train/ae", "train/wgan", "train/distribution", "train/gradient_norm"),
    *("critic/wasserstein", "critic/gradient_penalty", "train/images_per_second"),
)
"""Figures that do not enter any judgement; they are recorded and delivered like the others."""


@dataclass(frozen=True)
class Surrogate:
    """Results of trials that were never trained.

    Args:
        search: the spec's ranges.
        token_grid: G.
        epochs: epochs of a whole trial.
        minutes: median duration of a whole trial.
    """

    search: Mapping[str, Range]
    token_grid: int
    epochs: int
    minutes: float
    seed: int

    def seconds_an_epoch(self, uid: str) -> float:
        return 60 * self.minutes / self.epochs * math.exp(Random(f"{self.seed} pace {uid}").gauss(0, SPREAD))

    def results(self, uid: str, values: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
        """Yield the results of every epoch as Ray Tune passes them on; a diverging trial ends with its reason."""
        draw = Random(f"{self.seed} trial {uid}")
        diverges_at = draw.randrange(1, self.epochs + 1) if draw.random() < DIVERGING else None
        grid = int(values.get(GRID_KEY, 6))
        places = {key: _place(found, values[key]) for key, found in self.search.items() if key != GRID_KEY}
        off = sum((place - Random(f"{self.seed} best {key}").random()) ** 2 for key, place in places.items())
        bias = next(iter(places.values()), 0.5)
        end = 0.12 / grid * (1 + 2 * off) * (1 + 0.3 * bias) * math.exp(draw.gauss(0, 0.05))
        likeness = FLOOR + 0.5 / grid * (1 + off) * (1.2 - bias) * math.exp(draw.gauss(0, 0.05))
        tau = draw.uniform(2, 6)
        for epoch in range(1, self.epochs + 1):
            if epoch == diverges_at:
                yield {FAILURE: f"the generator's loss is not finite at step {100 * epoch}"}
                return
            slack = 1 + 3 * math.exp(-epoch / tau)
            yield {
                "val/fvu": end * slack,
                "val/gain": 1 - end * slack / 0.1,
                "val/swd": likeness * (1 + 0.3 * (slack - 1)),
                "val/swd_floor": FLOOR,
                **{name: draw.random() for name in OTHERS},
                "val/cosine": 1 - end,
                "compression_ratio": self.token_grid**2 / grid**2,
                "epoch": epoch,
                "epochs": self.epochs,
                "training_iteration": epoch,
                "checkpoint_path": f"/storage/trials/{uid}/checkpoint-{epoch:06d}",
            }


def baselines(grids: tuple[int, ...]) -> dict[int, dict[str, dict[str, float]]]:
    """Return figures of pooling and window PCA at every grid, as bad as such baselines are."""
    return {
        grid: {
            "pooling": {"val/fvu": 0.6 / grid, "val/swd": 0.11, "val/swd_floor": FLOOR, "val/cosine": 0.9},
            "window_pca": {"val/fvu": 0.2 / grid, "val/swd": 0.45, "val/swd_floor": FLOOR, "val/cosine": 0.95},
        }
        for grid in grids
    }


def _place(found: Range, value: Any) -> float:
    """Return where a value lies in its range, from 0 to 1."""
    if found.kind == "choice":
        return found.values.index(value) / max(1, len(found.values) - 1)
    low, high = found.values
    if found.kind == "log":
        return (math.log(value) - math.log(low)) / (math.log(high) - math.log(low))
    return (value - low) / (high - low)

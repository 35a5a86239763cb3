"""What a sweep is: the whole experiment as one frozen value. `tokconv.sweep.spec.file` reads it from YAML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from tokconv.config.overrides import compose
from tokconv.config.tree import Config
from tokconv.sweep.spec.ranges import Range

GRID_KEY = "model.compressor.output_grid_size"
BATCH_KEY = "training.batch_size"
FIGURES = (
    "compression_ratio",
    "val/fvu",
    "val/gain",
    "val/cosine",
    "val/cosine_centered",
    "val/swd",
    "val/mmd",
    "val/knn_overlap",
    "val/cka",
    "val/probe_accuracy",
    "val/probe_kept",
    "val/reader_accuracy",
    "val/reader_kept",
)
"""What objectives and targets may name. A critic's own estimate is not among them: its ruler changes with the trial."""
SAMPLERS = ("tpe", "nsga2", "gp", "random", "grid")
RUNNERS = ("torch_trainer", "inline")
MIN_SEEDS = 2
"""Seeds of a confirmation; an interval needs two at least."""


@dataclass(frozen=True, kw_only=True)
class Objective:
    metric: str
    mode: str


@dataclass(frozen=True, kw_only=True)
class Target:
    """`metric <= limit` or `metric >= limit`."""

    metric: str
    sign: str
    limit: float

    def met(self, figures: Mapping[str, float]) -> bool:
        return self.excess(figures) <= 0

    def excess(self, figures: Mapping[str, float]) -> float:
        """How far the figure is past the limit; at most 0 when the target is met, infinite when it is missing."""
        value = figures.get(self.metric)
        if value is None:
            return float("inf")
        return value - self.limit if self.sign == "<=" else self.limit - value

    def __str__(self) -> str:
        return f"{self.metric} {self.sign} {self.limit}"


@dataclass(frozen=True, kw_only=True)
class Champion:
    """The rule for a grid's winner: lowest `minimise` among the trials that meet every target."""

    minimise: str = "val/fvu"
    subject_to: tuple[Target, ...] = (
        Target(metric="val/swd", sign="<=", limit=0.1),
        Target(metric="val/cosine", sign=">=", limit=0.85),
    )


@dataclass(frozen=True, kw_only=True)
class Sampler:
    kind: str = "tpe"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class EarlyStopping:
    min_epochs: int = 2
    reduction: int = 3


@dataclass(frozen=True, kw_only=True)
class Confirm:
    """The winner of each grid is trained again on this many fresh seeds; an interval needs two at least."""

    seeds: int = 3


@dataclass(frozen=True, kw_only=True)
class Resources:
    runner: str = "torch_trainer"
    workers: int = 1
    """Processes a trial; each takes an equal part of every batch, and the result is that of one."""
    gpus_per_worker: float = 0.0
    cpus_per_worker: int = 1
    trial_timeout: float = 0.0
    """Seconds that an epoch may take, start and evaluation included; a trial that takes longer hangs. 0: any time."""

    @property
    def patience(self) -> float | None:
        """`trial_timeout`; None when there is none."""
        return self.trial_timeout or None


@dataclass(frozen=True, kw_only=True)
class Tracking:
    uri: str | None = None
    experiment: str | None = None
    wandb: bool = False
    """Weights & Biases beside MLflow."""


@dataclass(frozen=True, kw_only=True)
class Spec:
    """A checked spec; the README shows the YAML with every key."""

    name: str
    base: tuple[str, ...] = ()
    search: Mapping[str, Range] = field(default_factory=dict)
    objectives: tuple[Objective, ...] = (
        Objective(metric="compression_ratio", mode="max"),
        Objective(metric="val/fvu", mode="min"),
        Objective(metric="val/swd", mode="min"),
    )
    champion: Champion = Champion()
    sampler: Sampler = Sampler()
    early_stopping: EarlyStopping | None = EarlyStopping()
    trials: int
    concurrency: int = 1
    confirm: Confirm | None = Confirm()
    """None: champions are unconfirmed, whatever their one run shows."""
    resources: Resources = Resources()
    tracking: Tracking = Tracking()
    storage: str | None = None
    """A directory that every node sees, or a URL (s3://bucket/prefix); None is `runs`."""

    def base_config(self) -> Config:
        """The config that every trial starts from."""
        return compose(self.base)

    @property
    def judged_by(self) -> tuple[str, ...]:
        """The figures that are objectives."""
        return tuple(objective.metric for objective in self.objectives)

    @property
    def confirm_seeds(self) -> int:
        """Seeds a winner is trained on again; 0 for none."""
        return 0 if self.confirm is None else self.confirm.seeds

    def grids(self) -> tuple[int, ...]:
        """Every output grid size that a trial may have, ascending."""
        if GRID_KEY in self.search:
            return tuple(sorted(int(value) for value in self.search[GRID_KEY].members()))
        return (self.base_config().model.compressor.output_grid_size,)

    def batch_sizes(self) -> Sequence[int]:
        """Every `training.batch_size` that a trial may have."""
        found = self.search.get(BATCH_KEY)
        if found is None:
            return (self.base_config().training.batch_size,)
        return range(found.values[0], found.values[1] + 1) if found.kind == "int" else found.values

"""What the trials of a search space cost at every grid: the mean over random points of the space.

Each network the points can build takes a few real training steps (`tokconv.step_cost`). Points that compute the same
share one measurement, and `training.n_critic`, in which the cost is linear, needs two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import optuna

from tokconv.config import Config, flatten, get, to_dict
from tokconv.overrides import with_values
from tokconv.step_cost import StepCost
from tokconv.sweep.search import distribution, grid_points
from tokconv.sweep.spec import GRID_KEY, Spec

POINTS = 256
N_CRITIC = "training.n_critic"
FREE = {
    *("training.learning_rate", "training.critic_learning_rate", "training.seed", "training.grad_clip"),
    *("loss.wgan.start", "model.compressor.init", N_CRITIC),
}
"""Keys whose value changes nothing that a step computes, and the one that is told apart."""
SWITCHES = ("loss.weights.", "loss.wgan.lambda_gp")
"""Keys that matter only by being 0 or not."""
Measure = Callable[[Config], StepCost]


@dataclass(frozen=True, kw_only=True)
class GridCost:
    """Means over the points of one grid."""

    grid: int
    parameters: float
    checkpoint_bytes: float
    export_bytes: float
    flops: float
    """Of a training step, an image."""
    seconds: float | None
    """Of a training step, where it was timed."""


def space_cost(spec: Spec, measure: Measure) -> tuple[GridCost, ...]:
    """The mean cost of a trial at every grid of a spec.

    Args:
        measure: what one config costs.
    """
    base, known = spec.base_config(), dict[str, StepCost]()
    points = draw_points(spec)
    return tuple(
        _mean(grid, [_cost(with_values(base, {**point, GRID_KEY: grid}), measure, known) for point in points])
        for grid in spec.grids()
    )


def draw_points(spec: Spec, count: int = POINTS) -> list[dict[str, Any]]:
    """Random points of the search space, the same every time; of a grid sampler all of them."""
    if spec.sampler.kind == "grid":
        return grid_points(spec)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    space = {key: distribution(found) for key, found in spec.search.items()}
    return [study.ask(space).params for _ in range(count)]


def _cost(config: Config, measure: Measure, known: dict[str, StepCost]) -> StepCost:
    wanted = int(get(config, N_CRITIC))
    if config.loss.weights.wgan == 0:
        # Without a critic its updates do not matter.
        return _known(with_values(config, {N_CRITIC: 1}), measure, known)
    one, two = (_known(with_values(config, {N_CRITIC: n}), measure, known) for n in (1, 2))

    def at(first: float, second: float) -> float:
        # Timing noise must not make an update gain time.
        return first + (wanted - 1) * max(0.0, second - first)

    timed = one.seconds is not None and two.seconds is not None
    return dataclasses.replace(
        one,
        flops=at(one.flops, two.flops),
        seconds=at(one.seconds, two.seconds) if timed else None,  # type: ignore[arg-type]  # both are there
    )


def _known(config: Config, measure: Measure, known: dict[str, StepCost]) -> StepCost:
    key = f"{_computes(config)} {get(config, N_CRITIC)}"
    if key not in known:
        known[key] = measure(config)
    return known[key]


def _computes(config: Config) -> Mapping[str, Any]:
    """What a step computes, as far as it depends on the config."""
    leaves = flatten({name: part for name, part in to_dict(config).items() if name != "data"})
    return {key: bool(value) if key.startswith(SWITCHES) else value for key, value in leaves.items() if key not in FREE}


def _mean(grid: int, costs: Iterable[StepCost]) -> GridCost:
    found = list(costs)
    seconds = [cost.seconds for cost in found if cost.seconds is not None]
    return GridCost(
        grid=grid,
        parameters=fmean(cost.parameters for cost in found),
        checkpoint_bytes=fmean(cost.checkpoint_bytes for cost in found),
        export_bytes=fmean(cost.export_bytes for cost in found),
        flops=fmean(cost.flops for cost in found),
        seconds=fmean(seconds) if seconds else None,
    )

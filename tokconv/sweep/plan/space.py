"""The cost of a trial at every grid: the mean over random points of the search space.

Every network that the points can build runs a few real training steps (`tokconv.training.step_cost`). Points that
compute the same share one measurement. The cost is linear in `training.n_critic`, which needs two.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from statistics import fmean
from typing import Any

from tokconv.config.keys import get
from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.sweep.search.space import Validity, grid_points, random_points
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.schema import Spec
from tokconv.training.step_cost import StepCost

N_CRITIC, WGAN = "training.n_critic", "loss.weights.wgan"
FREE = {
    *("training.learning_rate", "training.critic_learning_rate", "training.seed", "training.grad_clip"),
    *("loss.wgan.start", "loss.wgan.balance", "training.critic_schedule", "model.compressor.init", N_CRITIC),
}
"""Keys whose value does not change what a step computes, and n_critic, which is measured separately."""
SWITCHES = ("loss.weights.", "loss.wgan.lambda_gp", "model.critic.whiten", "training.ema")
"""Keys of which only matters whether they are 0."""
Measure = Callable[[Config], StepCost]


def space_cost(spec: Spec, measure: Measure) -> dict[int, StepCost]:
    """Return the mean cost of a step at every grid of a spec that a trial can have.

    Args:
        measure: returns the cost of one config.
    """
    space, validity = _Space(spec.base_config(), measure), Validity(spec)
    points, costs = draw_points(spec), {}
    for grid in spec.grids():
        own = [point for point in ({**point, GRID_KEY: grid} for point in points) if not validity.refusal(point)]
        if own:
            costs[grid] = _mean(map(space.cost, own))
    return costs


def draw_points(spec: Spec) -> list[dict[str, Any]]:
    """Return valid random points of the search space, the same every time; every valid point for a grid sampler."""
    validity = Validity(spec)
    points = grid_points(spec) if spec.sampler.kind == "grid" else random_points(spec)
    return [point for point in points if not validity.refusal(point)]


class _Space:
    """The costs of points; each kind of step is measured once."""

    def __init__(self, base: Config, measure: Measure) -> None:
        self._base, self._measure = base, measure
        self._known: dict[str, StepCost] = {}

    def cost(self, point: Mapping[str, Any]) -> StepCost:
        wanted = int(point.get(N_CRITIC, get(self._base, N_CRITIC)))
        if point.get(WGAN, get(self._base, WGAN)) == 0:
            # Without a critic the number of its updates does not matter.
            return self._at(point, 1)
        one, two = self._at(point, 1), self._at(point, 2)

        def at(first: float, second: float) -> float:
            # Timing noise must not give an update a negative cost.
            return first + (wanted - 1) * max(0.0, second - first)

        seconds = None if one.seconds is None or two.seconds is None else at(one.seconds, two.seconds)
        return dataclasses.replace(one, flops=at(one.flops, two.flops), seconds=seconds)

    def _at(self, point: Mapping[str, Any], n_critic: int) -> StepCost:
        # The part of the point on which a step's computation depends.
        parts = {
            key: bool(value) if key.startswith(SWITCHES) else value for key, value in point.items() if key not in FREE
        }
        kind = f"{n_critic} {sorted(parts.items())}"
        if kind not in self._known:
            self._known[kind] = self._measure(with_values(self._base, {**point, N_CRITIC: n_critic}))
        return self._known[kind]


def _mean(costs: Iterable[StepCost]) -> StepCost:
    rows = zip(*map(dataclasses.astuple, costs), strict=True)
    means: list[Any] = [None if None in row else fmean(row) for row in rows]
    return StepCost(*means)

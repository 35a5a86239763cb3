"""The points of a search space: the first ones, a whole grid, random ones, and which of them no config can have.

Every value of a range is valid by itself. Some combinations are not, such as `loss.weights` that are all 0.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from itertools import product
from random import Random
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from tokconv.config.checks import check_combination
from tokconv.config.keys import get
from tokconv.errors import ConfigError, SpecError, require_extra
from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range
from tokconv.sweep.spec.schema import Spec

RANDOM_POINTS = 256
"""Random points that stand for a search space."""
MOST_POINTS = 100_000
"""Of a grid: all of them are checked before anything runs, which takes 6 s, and kept in memory."""


class Validity:
    """Tells which points of a spec's search space its config refuses.

    Example:
        >>> Validity(spec).refusal({"loss.weights.wgan": 0, "loss.weights.ae": 0})    # doctest: +SKIP
        'loss.weights: all are 0, nothing would be trained; raise ae or another one'
    """

    def __init__(self, spec: Spec) -> None:
        self._base = spec.base_config()

    def refusal(self, values: Mapping[str, Any]) -> str:
        """Return why no config can have these values; "" if one can."""
        config = copy.deepcopy(self._base)
        for key, value in values.items():
            section, _, name = key.rpartition(".")
            setattr(get(config, section), name, value)
        try:
            check_combination(config)
        except ConfigError as error:
            return str(error)
        return ""


def check_space(spec: Spec) -> str:
    """Check the objectives and the search space of a spec before anything runs.

    Returns:
        One sentence about the points of a grid that will be left out; "" if there are none, or without a grid.

    Raises:
        SpecError: no point is valid, a grid has too many, or an objective asks for the worst trials.
        MissingExtraError: a loss of the space is not installed.
    """
    _check_objectives(spec)
    whole, validity = spec.sampler.kind == "grid", Validity(spec)
    if whole and (count := math.prod(found.count for found in spec.search.values())) > MOST_POINTS:
        raise SpecError(
            f"sampler.kind: this grid has {count:,} points, and at most {MOST_POINTS:,} are allowed; list fewer "
            "values, or use tpe or random"
        )
    points = grid_points(spec) if whole else [*first_points(spec), *random_points(spec)]
    reasons = [(point, reason) for point in points if (reason := validity.refusal(point))]
    _check_extra(spec)
    if not reasons:
        return ""
    point, reason = reasons[0]
    first = f"{' '.join(f'{key}={value}' for key, value in point.items())} ({reason})"
    if len(reasons) == len(points):
        tried = "no combination" if whole else f"none of {len(points)} combinations"
        raise SpecError(f"search: {tried} of these ranges is valid; the first: {first}")
    if not whole:
        return ""
    return f"search: {len(reasons)} of the grid's {len(points)} points are invalid and left out; the first: {first}"


def first_points(spec: Spec) -> list[dict[str, Any]]:
    """Return the base config at every grid, in the searched keys; a value outside its range is moved into it."""
    config = spec.base_config()
    point = {key: found.nearest(get(config, key)) for key, found in spec.search.items()}
    if GRID_KEY not in spec.search:
        return [point]
    return [{**point, GRID_KEY: grid} for grid in spec.grids()]


def grid_points(spec: Spec) -> list[dict[str, Any]]:
    """Return every point of a grid sampler's grid, invalid ones included, in an order that the seed shuffles."""
    points = product(*(found.members() for found in spec.search.values()))
    found = [dict(zip(spec.search, point, strict=True)) for point in points]
    Random(spec.sampler.seed).shuffle(found)
    return found


def random_points(spec: Spec, seed: int = 0) -> Iterator[dict[str, Any]]:
    """Yield random points of the search space, the same for the same seed."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=seed))
    space = {key: distribution(found) for key, found in spec.search.items()}
    for _ in range(RANDOM_POINTS):
        yield study.ask(space).params


def distribution(found: Range) -> BaseDistribution:
    """Return a range as Optuna's distribution."""
    if found.kind == "choice":
        return CategoricalDistribution(found.values)
    low, high = found.values
    if found.kind == "int":
        return IntDistribution(low, high)
    return FloatDistribution(low, high, log=found.kind == "log")


def _check_objectives(spec: Spec) -> None:
    """Raise SpecError if a figure is an objective twice, or with the direction in which it gets worse."""
    for number, (metric, mode) in enumerate((one.metric, one.mode) for one in spec.objectives):
        if metric in spec.judged_by[:number]:
            raise SpecError(f"objectives: {metric} is listed twice; name every figure once")
        if mode != (better := "min" if FIGURES[metric].lower_is_better else "max"):
            raise SpecError(f"objectives: {metric} is better if {better}imal, and its mode is {mode}; write {better}")


def _check_extra(spec: Spec) -> None:
    """Raise MissingExtraError if a trial may use the Sinkhorn divergence and its package is missing."""
    config = spec.base_config()

    def may_be(key: str) -> tuple[Any, ...]:
        return spec.search[key].values if key in spec.search else (get(config, key),)

    if "sinkhorn" in may_be("loss.distribution") and any(may_be("loss.weights.distribution")):
        require_extra("sinkhorn", "geomloss")

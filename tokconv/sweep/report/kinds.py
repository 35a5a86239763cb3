"""The front of every kind of compressor at an output grid: what its trials reach in fidelity and in readability."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.judge.epochs import kept
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import FVU, Verdict
from tokconv.sweep.record.events import TrialRecord

KIND_KEY = "model.compressor.kind"


@dataclass(frozen=True)
class KindFront:
    """The complete trials of one kind at one output grid."""

    kind: str
    readability: str
    """The figure that fvu is compared with, see `readability`."""
    trials: int
    points: tuple[TrialRecord, ...]
    """Those that have both figures and are within all constraints; each as it ended and with every best epoch."""

    @property
    def front(self) -> tuple[TrialRecord, ...]:
        """The points that no other one of this kind dominates, by falling fvu."""
        costs = [[point.figures[FVU], _cost(point, self.readability)] for point in self.points]
        front = [point for point, rank in zip(self.points, ranks(costs), strict=True) if rank == 0]
        return tuple(sorted(front, key=lambda point: -point.figures[FVU]))

    def best(self, figure: str) -> float | None:
        """Return the best value of a figure; None without points."""
        best = min(self.points, key=lambda point: _cost(point, figure), default=None)
        return None if best is None else best.figures[figure]


def kinds(sweep: SweepSnapshot) -> tuple[str, ...]:
    """Return the kinds that have complete trials, in the order of the spec; () for fewer than two, and there is
    nothing to compare."""
    searched = sweep.spec.search.get(KIND_KEY)
    # A sweep that was resumed with fewer kinds keeps the trials of the others.
    found = {str(trial.values[KIND_KEY]): None for trial in _complete(sweep.verdicts) if KIND_KEY in trial.values}
    order = [str(kind) for kind in searched.members()] if searched is not None else []
    named = (*(kind for kind in order if kind in found), *sorted(found.keys() - set(order)))
    return named if len(named) > 1 else ()


def readability(verdicts: Sequence[Verdict]) -> str:
    """Return the figure that finds the plug-in champion, or that of likeness if no complete trial has it."""
    known = {name for trial in _complete(verdicts) for one in kept(trial) for name in one.figures}
    award = verdicts[0].award("plug-in")
    figure = PURPOSES["plug-in"].figure(known) if award is None else award.criterion.figure
    return figure if figure in known else verdicts[0].likeness


def kind_fronts(sweep: SweepSnapshot, verdict: Verdict) -> list[KindFront]:
    """Return the front of each of `kinds` at a grid; a kind without trials there has no points."""
    figure, fronts = readability(sweep.verdicts), []
    for kind in kinds(sweep):
        own = [trial for trial in verdict.trials if str(trial.values.get(KIND_KEY)) == kind]
        points = tuple(
            one
            for trial in own
            for one in kept(trial)
            if {FVU, figure} <= one.figures.keys() and sweep.spec.rules.feasible(one.figures)
        )
        fronts.append(KindFront(kind, figure, len(own), points))
    return fronts


def _complete(verdicts: Iterable[Verdict]) -> list[TrialRecord]:
    return [trial for verdict in verdicts for trial in verdict.trials]


def _cost(trial: TrialRecord, figure: str) -> float:
    value = trial.figures[figure]
    if math.isnan(value):
        return math.inf
    return value if FIGURES[figure].lower_is_better else -value

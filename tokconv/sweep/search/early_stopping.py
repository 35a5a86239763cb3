"""Multi-objective asynchronous successive halving (Schmucker et al. 2021, arXiv:2106.12639), per output grid.

Rungs lie at min_epochs * reduction^i of our own epoch count. At a rung a trial is compared with the trials of the same
grid that have reached it: by non-dominated rank on the figures of `rules.compared`, then by crowding distance. It goes
on if it is among the best 1/reduction, and also if nothing dominates it. The paper's selection may drop part of a front
that is larger than the quota; this one does not, because the front is what a sweep is for.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.pareto import Point, crowding, ranks
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.spec.rules import AXES
from tokconv.sweep.spec.sections import EarlyStopping


class Rungs:
    """The rungs of every grid with the trials that reached them, and the decision at a rung, without Ray.

    Args:
        rule: the first rung, and the share that goes on, 1/reduction.
        epochs: the length of a trial; there is no rung at its end.
        axes: the figures that are compared; with a single one this is plain successive halving.
    """

    def __init__(self, rule: EarlyStopping, epochs: int, axes: Sequence[str] = AXES) -> None:
        self.levels = []
        level = rule.min_epochs
        while level < epochs:
            self.levels.append(level)
            level *= rule.reduction
        self.reduction, self._axes = rule.reduction, tuple(axes)
        self._seen: dict[tuple[float, int], dict[str, Point]] = defaultdict(dict)

    def replay(self, trials: Iterable[TrialRecord]) -> None:
        """Enter what trials of an earlier driver reported."""
        for trial in trials:
            for figures in trial.history:
                self._enter(trial.uid, figures)

    def goes_on(self, uid: str, figures: Any) -> bool:
        """Enter one epoch's figures and return whether the trial should go on."""
        rung = self._enter(uid, figures)
        if rung is None:
            return True
        uids, points = list(rung), list(rung.values())
        rank = dict(zip(uids, ranks(points), strict=True))
        if rank[uid] == 0:
            return True
        peers = [other for other in uids if rank[other] == rank[uid]]
        crowd = dict(zip(peers, crowding([rung[other] for other in peers]), strict=True))
        better = sum(r < rank[uid] for r in rank.values()) + sum(c > crowd[uid] for c in crowd.values())
        return better < len(points) / self.reduction

    def _enter(self, uid: str, figures: Any) -> dict[str, Point] | None:
        """Enter figures into their rung and return it; None between rungs, or if there is nothing to compare."""
        epoch = int(figures["epoch"])
        if epoch not in self.levels or any(axis not in figures for axis in self._axes):
            return None
        rung = self._seen[figures["compression_ratio"], epoch]
        rung[uid] = tuple(figures[axis] * (1 if FIGURES[axis].lower_is_better else -1) for axis in self._axes)
        return rung


class ParetoHalving(FIFOScheduler):
    """A Ray Tune scheduler that decides by `Rungs`."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped_calls_exclude does not reach through super()
        self._rungs = rungs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if FAILURE in result or self._rungs.goes_on(trial.config["uid"], result):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)

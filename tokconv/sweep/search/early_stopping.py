"""Multi-objective asynchronous successive halving (Schmucker et al. 2021, arXiv:2106.12639), per output grid.

Rungs lie at min_epochs * reduction^i of our own epoch count. At a rung a trial is compared with the trials of the same
grid that have reached it: non-dominated rank on (val/fvu, val/swd) first, crowding distance second. It goes on when
it is among the best 1/reduction, and also whenever nothing dominates it: unlike the paper's selection, which may drop
part of a front larger than the quota, because a sweep is read for its front.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from ray.tune.schedulers import FIFOScheduler, TrialScheduler

from tokconv.sweep.judge.pareto import Point, crowding, ranks
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.spec.schema import EarlyStopping

AXES = ("val/fvu", "val/swd")


class Rungs:
    """What every rung of every grid has seen; the decision, without Ray.

    Args:
        rule: first rung and the share kept, 1/reduction.
        epochs: a trial's length; there is no rung at its end.
        axes: the figures that are compared; a single one makes it plain successive halving.
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
        """Take in what trials of an earlier driver reported."""
        for trial in trials:
            for figures in trial.history:
                self._take_in(trial.uid, figures)

    def goes_on(self, uid: str, figures: Any) -> bool:
        """Take in one epoch's figures; whether the trial should go on."""
        rung = self._take_in(uid, figures)
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

    def _take_in(self, uid: str, figures: Any) -> dict[str, Point] | None:
        """The rung with this trial in it; None between rungs."""
        epoch = int(figures["epoch"])
        if epoch not in self.levels:
            return None
        rung = self._seen[figures["compression_ratio"], epoch]
        rung[uid] = tuple(figures[axis] for axis in self._axes)
        return rung


class ParetoHalving(FIFOScheduler):
    """Ray Tune's view of `Rungs`."""

    def __init__(self, rungs: Rungs) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # untyped_calls_exclude does not reach through super()
        self._rungs = rungs

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        if FAILURE in result or self._rungs.goes_on(trial.config["uid"], result):
            return str(TrialScheduler.CONTINUE)
        return str(TrialScheduler.STOP)

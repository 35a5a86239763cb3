"""What early stopping saves, and what it costs in the front: a replay of a sweep that ran without it.

Every trial of the record ran to its end, so it is known what any rule would have stopped, and what the front would then
lack. The trials are replayed in many random arrival orders through the scheduler's own `Rungs`. Two effects are not
modelled: a sampler that sees fewer complete trials suggests others, and an early end makes room for more trials.

    hypervolume (pooling)    area between a grid's final (fvu, swd) front and pooling's figures
    hypervolume (worst)      area between that front and the worst fvu and swd of any trial of that grid: stricter,
                             because a front far below pooling loses little of the area up to pooling
"""

from __future__ import annotations

import heapq
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from statistics import fmean
from typing import Any

from tokconv.errors import ConfigError, SweepError
from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.pareto import Point, hypervolume
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.log import read_trials
from tokconv.sweep.search.early_stopping import Rungs
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.spec.rules import AXES, compared
from tokconv.sweep.spec.sections import EarlyStopping

PACE = (0.8, 1.25)
"""Range of the time per epoch, drawn per trial and order: as on machines, trials reach their rungs out of step."""
COMPARED = {"fvu and swd": AXES, "fvu alone": AXES[:1], "swd alone": AXES[1:]}
"""Name in the table -> figures that trials may be compared on, besides those that the sweep compares."""
Span = tuple[float, float, float]
"""Mean, and the 2.5 and 97.5 % points over the orders: what one sweep may see."""
References = Mapping[int, Point]
"""Output grid -> reference point of its hypervolume."""


@dataclass(frozen=True)
class ReplayResult:
    """What one rule does to one sweep, over all orders, as shares between 0 and 1."""

    saved: Span
    """Share of all trial epochs."""
    lost_to_pooling: Span
    """Share of the hypervolume up to pooling, mean over the grids where the front dominates pooling."""
    lost_to_worst: Span
    """Share of the hypervolume up to the worst figures of any trial, mean over the grids where that is an area."""
    best_survives: float
    """Share of grids, over all orders, whose trial of the lowest fvu ran to its end."""


def load_complete(directory: Path) -> tuple[list[TrialRecord], References, int]:
    """Return the trials of a sweep, pooling's point at every grid, and the sweep's concurrency.

    Confirmations are left out, because no rule stops them, and so are trials that diverged and stopped by themselves.

    Raises:
        SweepError: the directory holds no sweep, or some trials were stopped early or are unfinished.
    """
    events = directory / "events.jsonl"
    if not events.is_file():
        raise SweepError(f"{directory}: holds no sweep (no events.jsonl); name one, as in runs/sweeps/demo-001")
    trials = [trial for trial in read_trials(events) if trial.state != "failed"]
    cut = [trial.uid for trial in trials if trial.state != "complete"]
    if cut or not trials:
        found = f"{len(cut)} of {len(trials)} trials did not run to their end" if trials else "no trial is complete"
        raise SweepError(
            f"{directory}: {found}; a replay needs the whole curve of every trial: sweep with early_stopping=none"
        )
    return trials, _pooling(directory), load_spec(directory / "spec.yaml").concurrency


def replay(
    trials: Sequence[TrialRecord],
    rule: EarlyStopping | None,
    *,
    axes: Sequence[str] = AXES,
    pooling: References | None = None,
    concurrency: int = 1,
    orders: int = 200,
    seed: int = 0,
) -> ReplayResult:
    """Replay complete trials under an early-stopping rule; without a rule nothing is stopped.

    Args:
        trials: all complete, each with the figures of every epoch.
        pooling: output grid -> pooling's (fvu, swd); a grid without it does not count there.
        concurrency: trials at a time. If one ends, the next of the order starts.
        orders: number of random orders.

    Example:
        >>> replay(trials, EarlyStopping(min_epochs=2, reduction=3)).saved    # doctest: +SKIP
        (0.51, 0.42, 0.58)
    """
    grids: dict[int, dict[str, Point]] = {}
    for trial in trials:
        grids.setdefault(trial.grid, {})[trial.uid] = tuple(trial.figures[axis] for axis in AXES)
    worst = {grid: tuple(map(max, *points.values())) for grid, points in grids.items() if len(points) > 1}
    best = {min(points, key=lambda uid: (points[uid], uid)) for points in grids.values()}
    total = sum(trial.epochs_done for trial in trials)
    saved, to_pooling, to_worst, best_survives = [], [], [], []
    draw = Random(seed)
    for _ in range(orders):
        survivors, epochs = _run(draw.sample(trials, len(trials)), rule, axes, concurrency, draw)
        saved.append(1 - epochs / total)
        to_pooling.append(_lost(grids, survivors, pooling or {}))
        to_worst.append(_lost(grids, survivors, worst))
        best_survives.append(len(best & survivors) / len(best))
    return ReplayResult(_span(saved), _span(to_pooling), _span(to_worst), fmean(best_survives))


def print_replay(
    directory: Path,
    *,
    min_epochs: Sequence[int],
    reductions: Sequence[int],
    orders: int,
    seed: int,
) -> None:
    """Print the table of `tokconv replay`: one row per rule, on the sweep's own figures, on fvu and swd, and on each.

    Raises:
        ConfigError: a number out of bounds.
        SweepError: see `load_complete`.
    """
    for option, values, low in (
        ("--min-epochs", min_epochs, 1),
        ("--reduction", reductions, 2),
        ("--orders", [orders], 1),
    ):
        for value in values:
            if value < low:
                raise ConfigError(f"{option}: got {value}; must be at least {low}")
    trials, pooling, concurrency = load_complete(directory)
    own = compared(load_spec(directory / "spec.yaml").judged_by)
    kinds = COMPARED if own == AXES else {"objectives": own, **COMPARED}
    epochs = max(trial.epochs_done for trial in trials)
    lines = [
        f"{len(trials)} trials of {epochs} epochs, {concurrency} at a time, in {orders} random orders; "
        "mean (2.5 to 97.5 % of the orders)",
        f"{'min_epochs':>10}  {'reduction':>9}  {'compared on':<11}  {'epochs saved':>18}  {'lost to pooling':>18}  "
        f"{'lost to worst':>18}  {'best kept':>9}",
    ]
    for rule in (EarlyStopping(min_epochs=m, reduction=r) for m in min_epochs for r in reductions):
        for name, axes in kinds.items():
            found = replay(trials, rule, axes=axes, pooling=pooling, concurrency=concurrency, orders=orders, seed=seed)
            to_pooling = _text(found.lost_to_pooling) if pooling else "-"
            spans = [f"{cell:>18}" for cell in (_text(found.saved), to_pooling, _text(found.lost_to_worst))]
            start = f"{rule.min_epochs:>10}  {rule.reduction:>9}  {name:<11}"
            lines.append("  ".join([start, *spans, f"{found.best_survives:>9.0%}"]))
    lines += [
        "lost: share of the hypervolume of the final (fvu, swd) fronts that is lost, mean over the grids, up to",
        "pooling's figures, and up to the worst of all trials; best kept: grids whose trial of the lowest fvu survives",
    ]
    if kinds is not COMPARED:
        figures = " and ".join(FIGURES[name].title for name in own)
        lines.append(f"objectives: {figures}, the figures on which early stopping compares the trials of this spec")
    if not pooling:
        lines.append("pooling's figures are unknown: the sweep has no report/champions.json")
    print("\n".join(lines))


def _run(
    order: Sequence[TrialRecord], rule: EarlyStopping | None, axes: Sequence[str], concurrency: int, draw: Random
) -> tuple[set[str], int]:
    """Return the uids that ran to their end, and the number of trial epochs that were run."""
    rungs = None if rule is None else Rungs(rule, max(trial.epochs_done for trial in order), axes)
    waiting, survivors, epochs = iter(order), set[str](), 0
    # The reports to come, soonest first: (time, tie-breaker, trial, its epochs so far, its pace).
    queue: list[tuple[float, float, str, int, float]] = []
    # The start, epoch 0, costs no training.
    histories = {trial.uid: [row for row in trial.history if row["epoch"] > 0] for trial in order}

    def start(now: float) -> None:
        trial = next(waiting, None)
        if trial is not None:
            pace = draw.uniform(*PACE)
            heapq.heappush(queue, (now + pace, draw.random(), trial.uid, 1, pace))

    for _ in range(concurrency):
        start(0.0)
    while queue:
        now, tie, uid, epoch, pace = heapq.heappop(queue)
        epochs += 1
        if epoch == len(histories[uid]):
            survivors.add(uid)
            start(now)
        elif rungs is not None and not rungs.goes_on(uid, histories[uid][epoch - 1]):
            start(now)
        else:
            heapq.heappush(queue, (now + pace, tie, uid, epoch + 1, pace))
    return survivors, epochs


def _lost(grids: Mapping[int, Mapping[str, Point]], survivors: set[str], references: References) -> float:
    """Return the share of the hypervolume that is lost, mean over the grids that have any."""
    shares = []
    for grid in grids.keys() & references.keys():
        points = grids[grid]
        full = hypervolume(list(points.values()), references[grid])
        if full > 0:
            left = hypervolume([point for uid, point in points.items() if uid in survivors], references[grid])
            shares.append(1 - left / full)
    return fmean(shares) if shares else 0.0


def _span(values: Sequence[float]) -> Span:
    ordered = sorted(values)
    last = len(ordered) - 1
    return fmean(ordered), ordered[round(0.025 * last)], ordered[round(0.975 * last)]


def _text(span: Span) -> str:
    mean, low, high = (100 * value for value in span)
    return f"{mean:.1f} % ({low:.1f}-{high:.1f})"


def _pooling(directory: Path) -> References:
    """Return pooling's point at every grid, from the sweep's report; empty without one."""
    path = directory / "report" / "champions.json"
    if not path.is_file():
        return {}
    try:
        grids: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return {
            int(grid): tuple(figures[axis] for axis in AXES)
            for grid, found in grids.items()
            if (figures := found["baselines"].get("pooling")) is not None
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SweepError(f"{path}: damaged; resume the sweep to write it again") from error

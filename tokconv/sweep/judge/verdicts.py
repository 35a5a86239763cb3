"""The judgement of a sweep: for every output grid its front, its champion, and what it has to beat."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokconv.sweep.judge.evidence import Evidence, confirmations_of, gather_evidence
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.schema import Champion

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Verdict:
    """What the sweep says about one output grid."""

    grid: int
    """k; the compressed image has k * k tokens."""
    ratio: float
    trials: tuple[TrialRecord, ...]
    """Finished ones only: a trial stopped early or failed is compared with nothing."""
    front: tuple[TrialRecord, ...]
    """Not dominated on (val/fvu, val/swd), by falling fvu."""
    champion: TrialRecord | None
    missed: tuple[str, ...]
    """Targets that are not met, with the figure: the mean of the confirmations, else the champion's own."""
    nearest: bool
    """Whether no trial of the search meets the targets: then the champion is the nearest, not a winner by the rule."""
    baselines: Mapping[str, Figures]
    evidence: Evidence | None
    """None without a champion."""

    def covers(self, trial: TrialRecord) -> bool:
        """Whether a trial, finished or not, has this grid."""
        return _same(trial.ratio, self.ratio)

    @property
    def meets_targets(self) -> bool:
        return self.champion is not None and not self.missed


def judge(
    trials: Iterable[TrialRecord],
    rule: Champion,
    token_grid: int,
    baselines: Mapping[int, Mapping[str, Figures]],
    *,
    confirmations: Iterable[TrialRecord] = (),
    seeds: int = 0,
) -> list[Verdict]:
    """One verdict for every grid in `baselines`, coarsest grid first.

    Args:
        trials: all of the search's.
        rule: the spec's champion rule.
        token_grid: G.
        baselines: grid -> baseline -> figures.
        confirmations: winners trained again; each counts for the trial that it confirms.
        seeds: confirmations wanted of a winner; 0 for none.
    """
    repeats = tuple(confirmations)
    complete = [trial for trial in trials if trial.state == "complete"]
    return [_verdict(grid, complete, rule, token_grid, baselines[grid], repeats, seeds) for grid in sorted(baselines)]


def _verdict(
    grid: int,
    complete: list[TrialRecord],
    rule: Champion,
    token_grid: int,
    baselines: Mapping[str, Figures],
    confirmations: tuple[TrialRecord, ...],
    seeds: int,
) -> Verdict:
    ratio = token_grid**2 / grid**2
    trials = tuple(trial for trial in complete if _same(trial.ratio, ratio))
    fronts = ranks([(trial.figures["val/fvu"], trial.figures["val/swd"]) for trial in trials])
    front = [trial for trial, rank in zip(trials, fronts, strict=True) if rank == 0]
    champion = min(trials, key=lambda trial: _distance(trial, rule), default=None)
    evidence = None
    if champion is not None:
        evidence = gather_evidence(champion, confirmations_of(champion.uid, confirmations), seeds, baselines)
    return Verdict(
        grid=grid,
        ratio=ratio,
        trials=trials,
        front=tuple(sorted(front, key=lambda trial: -trial.figures["val/fvu"])),
        champion=champion,
        missed=() if evidence is None else tuple(_misses(evidence.figures, rule)),
        nearest=champion is not None and any(_misses(champion.figures, rule)),
        baselines=baselines,
        evidence=evidence,
    )


def _same(ratio: float, other: float) -> bool:
    return abs(ratio - other) < 1e-9


def _distance(trial: TrialRecord, rule: Champion) -> tuple[float, float, str]:
    """Sorts trials that meet all targets first, by the minimised figure; the others by how far they are off.

    Distances count in units of the limit, so that targets of different scales add up; in plain units when it is 0.
    """
    off = sum(max(0.0, target.excess(trial.figures)) / (abs(target.limit) or 1.0) for target in rule.subject_to)
    return off, trial.figures.get(rule.minimise, float("inf")), trial.uid


def _misses(figures: Figures, rule: Champion) -> Iterable[str]:
    for target in rule.subject_to:
        if not target.met(figures):
            figure = figures.get(target.metric)
            yield f"{target} (it has {'no such figure' if figure is None else f'{figure:.4g}'})"

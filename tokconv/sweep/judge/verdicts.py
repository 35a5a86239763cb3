"""The judgement of a sweep: the front, the champion and the baselines of every output grid."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from tokconv.evaluation.figures import JUDGED_ON
from tokconv.sweep.judge.evidence import Evidence, Figures, confirmations_of, gather_evidence
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.schema import Champion


@dataclass(frozen=True)
class Verdict:
    """The judgement of one output grid."""

    grid: int
    """k: the compressed image has k * k tokens."""
    ratio: float
    trials: tuple[TrialRecord, ...]
    """The complete ones: a trial that was stopped early or failed is compared with nothing."""
    front: tuple[TrialRecord, ...]
    """Those that no other one dominates on `JUDGED_ON`, by falling val/fvu."""
    missed: tuple[str, ...]
    """Targets that are not met, with the figure: the mean over the confirmations, else the champion's own."""
    nearest: bool
    """Whether no trial of the search meets the targets: the champion is then the nearest one, no winner by the rule."""
    baselines: Mapping[str, Figures]
    evidence: Evidence | None
    """What is known about the champion; None without one."""

    @property
    def champion(self) -> TrialRecord | None:
        return None if self.evidence is None else self.evidence.champion

    @property
    def name(self) -> str:
        """The grid in words: `6x6`."""
        return f"{self.grid}x{self.grid}"

    @property
    def meets_targets(self) -> bool:
        return self.evidence is not None and not self.missed


def judge(
    trials: Iterable[TrialRecord],
    rule: Champion,
    token_grid: int,
    baselines: Mapping[int, Mapping[str, Figures]],
    *,
    confirmations: Iterable[TrialRecord] = (),
    seeds: int = 0,
) -> list[Verdict]:
    """Return one verdict for every grid in `baselines`, coarsest grid first.

    Args:
        trials: all trials of the search.
        rule: the spec's champion rule.
        token_grid: G.
        baselines: grid -> baseline -> figures.
        confirmations: winners that were trained again; each counts for the trial that it confirms.
        seeds: confirmations wanted per winner; 0 for none.
    """
    repeats, complete = tuple(confirmations), [trial for trial in trials if trial.state == "complete"]
    verdicts = []
    for grid in sorted(baselines):
        own = [trial for trial in complete if trial.grid == grid]
        fronts = ranks([[trial.figures[name] for name in JUDGED_ON] for trial in own])
        front = [trial for trial, rank in zip(own, fronts, strict=True) if rank == 0]
        best = min(own, key=lambda trial: _distance(trial, rule), default=None)
        evidence = None
        if best is not None:
            evidence = gather_evidence(best, confirmations_of(best.uid, repeats), seeds, baselines[grid])
        verdicts.append(
            Verdict(
                grid=grid,
                ratio=token_grid**2 / grid**2,
                trials=tuple(own),
                front=tuple(sorted(front, key=lambda trial: -trial.figures["val/fvu"])),
                missed=() if evidence is None else tuple(_misses(evidence.figures, rule)),
                nearest=best is not None and any(_misses(best.figures, rule)),
                baselines=baselines[grid],
                evidence=evidence,
            )
        )
    return verdicts


def _distance(trial: TrialRecord, rule: Champion) -> tuple[float, float, str]:
    """Return a sort key: trials that meet all targets first, by the minimised figure; the others by their distance.

    Distances count in units of the limit, so that targets of different scales add up; in plain units if it is 0.
    """
    distance = sum(max(0.0, target.excess(trial.figures)) / (abs(target.limit) or 1.0) for target in rule.subject_to)
    return distance, trial.figures.get(rule.minimise, float("inf")), trial.uid


def _misses(figures: Figures, rule: Champion) -> Iterable[str]:
    for target in rule.subject_to:
        if not target.met(figures):
            figure = figures.get(target.metric)
            yield f"{target} (it has {'no such figure' if figure is None else f'{figure:.4g}'})"

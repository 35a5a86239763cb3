"""How far a champion can be trusted: its figures over fresh seeds, with an interval, against every baseline.

The search's own run of the winner is not among the seeds: it was selected for being good, luck included, so its figures
are biased. The held-out images are the same in search and confirmation; only the luck of the seed is removed.

    proven        every seed ended, and even at the worse end of the 95 % intervals no baseline of the grid is at least
                  as good on every judged figure
    unproven      a baseline is at least as good, or a seed failed
    unconfirmed   `confirm: none`, and no baseline is at least as good as the only run
    pending       confirmation was cut off; `--resume` goes on with it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.figures import FIGURES, JUDGED_ON
from tokconv.evaluation.protocol import at_least_as_good
from tokconv.sweep.record.events import FINISHED, TrialRecord
from tokconv.sweep.spec.schema import MIN_SEEDS

PROVEN, UNPROVEN, UNCONFIRMED, PENDING = "proven", "unproven", "unconfirmed", "pending"
LEVEL = 0.95
SEED_KEY = "training.seed"

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Evidence:
    """What is known about one grid's champion."""

    champion: TrialRecord
    """The search's winner."""
    status: str
    wanted: int
    """Seeds that the spec asks for; 0 for `confirm: none`."""
    runs: tuple[TrialRecord, ...]
    """The champion's confirmations, in any state."""
    figures: Figures
    """Means over the complete confirmations; the figures of the search's own run if there is no mean."""
    exported: TrialRecord
    """The run whose checkpoint leaves the sweep."""
    half_widths: Figures = field(default_factory=dict)
    """Half of the interval of each figure; empty without confirmations."""
    beaten_by: tuple[str, ...] = ()
    """Baselines that are at least as good."""
    reasons: tuple[str, ...] = ()
    """Why it is unproven."""

    @property
    def label(self) -> str:
        """The status with the number of seeds, as a cell of the table: `proven (3)`."""
        if self.status == PENDING:
            return f"pending {sum(run.state in FINISHED for run in self.runs)}/{self.wanted}"
        return f"{self.status} ({len(self.runs)})" if self.wanted else self.status

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for champions.json and the champion's export."""
        return {
            "status": self.status,
            "summary": self.summary,
            "trial": self.champion.uid,
            "exported": self.exported.uid,
            "seeds": {run.uid: run.values[SEED_KEY] for run in self.runs},
            "mean": dict(self.figures) if self.half_widths else {},
            "half_width": dict(self.half_widths),
            "beaten_by": list(self.beaten_by),
        }

    @property
    def summary(self) -> str:
        """The status and what it rests on, in one line."""
        start = f"{self.status}, {len(self.runs)} seeds" if self.wanted else f"{self.status}, one seed"
        if self.status == PENDING:
            return self.label
        if self.reasons:
            return f"{start}: {'; '.join(self.reasons)}"
        if not self.half_widths:
            return start
        known = (
            f"{name} {FIGURES[name].text(self.figures[name])} +- {FIGURES[name].text(self.half_widths[name])}"
            for name in JUDGED_ON
        )
        return f"{start}: {', '.join(known)} (95 % interval)"


def gather_evidence(
    champion: TrialRecord, runs: Sequence[TrialRecord], seeds: int, baselines: Mapping[str, Figures]
) -> Evidence:
    """Return how far a grid's champion can be trusted.

    Args:
        champion: the search's winner.
        runs: its confirmations.
        seeds: confirmations wanted, at least 2, or 0 for none.
        baselines: name -> figures, every baseline of the grid.
    """
    if not seeds:
        beaten_by, reasons = _rivals(baselines, champion.figures, "the only run")
        status = UNPROVEN if beaten_by else UNCONFIRMED
        return Evidence(champion, status, 0, (), champion.figures, champion, beaten_by=beaten_by, reasons=reasons)
    runs = tuple(runs)
    if len(runs) < seeds or any(run.state not in FINISHED for run in runs):
        return Evidence(champion, PENDING, seeds, runs, champion.figures, champion)
    complete = [run for run in runs if run.state == "complete"]
    failed = tuple(
        f"seed {run.values[SEED_KEY]} ({run.uid}) {run.state}: {run.reason or 'no reason known'}"
        for run in runs
        if run.state != "complete"
    )
    if len(complete) < MIN_SEEDS:
        return Evidence(champion, UNPROVEN, seeds, runs, champion.figures, champion, reasons=failed)
    means, half_widths = intervals(complete)
    # Lower is better for every judged figure: the worse end of an interval is the upper one.
    worse = {name: means[name] + half_widths[name] for name in JUDGED_ON}
    beaten_by, rivals = _rivals(baselines, worse, "the champion's upper ends")
    reasons = (*rivals, *failed)
    status = UNPROVEN if reasons else PROVEN
    return Evidence(champion, status, seeds, runs, means, _middle(complete), half_widths, beaten_by, reasons)


def intervals(runs: Sequence[TrialRecord]) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and half of the 95 % interval (Student's t) of every figure that all runs have; at least two runs."""
    names = [name for name in runs[0].figures if all(name in run.figures for run in runs)]
    values = {name: [run.figures[name] for run in runs] for name in names}
    return {name: fmean(v) for name, v in values.items()}, {name: half_width(v) for name, v in values.items()}


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the values' mean (Student's t); at least two values."""
    from scipy.stats import t

    return float(t.ppf((1 + LEVEL) / 2, len(values) - 1)) / math.sqrt(len(values)) * stdev(values)


def confirmations_of(uid: str, runs: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return a trial's confirmations, without those that were given up when another trial took its place."""
    return [run for run in runs if run.confirms == uid and run.state != "pruned"]


def judged_text(figures: Figures) -> str:
    """Return the judged figures that are known: `fvu 0.0123, swd 0.088`."""
    known = [FIGURES[name] for name in JUDGED_ON if name in figures]
    return ", ".join(f"{figure.title} {figure.text(figures[figure.name])}" for figure in known)


def _rivals(baselines: Mapping[str, Figures], worse: Figures, whose: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the baselines that are at least as good on every judged figure: their names, and one sentence per name."""
    names = at_least_as_good(baselines, worse)
    return names, tuple(
        f"{_title(name)} ({judged_text(baselines[name])}) is at least as good as {whose} ({judged_text(worse)})"
        for name in names
    )


def _title(baseline: str) -> str:
    # A record may name a baseline that this version no longer has.
    return BASELINES[baseline].title if baseline in BASELINES else baseline.replace("_", " ")


def _middle(complete: Sequence[TrialRecord]) -> TrialRecord:
    """Return the run of the median fvu; of an even number, the worse of the two in the middle.

    The best would be picked for its luck. At least half of the runs are at least as good as this one.
    """
    ordered = sorted(complete, key=lambda run: (run.figures["val/fvu"], run.uid))
    return ordered[len(ordered) // 2]

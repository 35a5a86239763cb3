"""How far a champion can be trusted: its figures over fresh seeds, with an interval, against every baseline.

The search's own run of the winner is not among the seeds: it was selected for being good, luck included, so its figures
are biased. The held-out images are the same in search and confirmation; only the luck of the seed is removed.

    proven        every seed ended, and even at the worse end of the 95 % interval the champion beats every baseline at
                  its purpose's own figure and meets what its candidates have to meet; a tie is no win
    unproven      a baseline is at least as good, a target is missed, or a seed failed; a champion whose own run in the
                  search does not beat every baseline is not confirmed: fresh seeds are not expected to do better
    unconfirmed   `confirm: none`, and the only run beats every baseline
    pending       confirmation was cut off; `--resume` goes on with it
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import Any

from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figures import FIGURES, JUDGED_ON
from tokconv.evaluation.purposes import best_first, is_better
from tokconv.sweep.judge.student import two_sided_quantile
from tokconv.sweep.record.events import FINISHED, TrialRecord
from tokconv.sweep.spec.outline import MIN_SEEDS
from tokconv.sweep.spec.rules import Target

PROVEN, UNPROVEN, UNCONFIRMED, PENDING = "proven", "unproven", "unconfirmed", "pending"
LEVEL = 0.95
SEED_KEY = "training.seed"

Figures = Mapping[str, float]


@dataclass(frozen=True)
class Criterion:
    """What a champion is judged by."""

    figure: str
    """The purpose's own figure."""
    targets: tuple[Target, ...] = ()
    """What a candidate has to meet."""
    entry: tuple[Target, ...] = ()
    """What a baseline has to meet to compete; one that does not is named and proves nothing."""

    def beats(self, value: float, other: float) -> bool:
        """Return whether one value of the figure is better than another; equal ones are not."""
        return is_better(self.figure, value, other)

    def cost(self, value: float) -> float:
        """Return a value of the figure such that lower is better."""
        return value if FIGURES[self.figure].lower_is_better else -value

    def best_first(self, trial: TrialRecord) -> tuple[float, float, str]:
        """Return a sort key of trials that have the figure; accuracies are often equal, and then fvu decides."""
        return self.cost(trial.figures[self.figure]), trial.figures.get("val/fvu", math.inf), trial.uid

    def text(self, value: float) -> str:
        """Return a value with the figure's title: `fvu 0.0123`."""
        return f"{FIGURES[self.figure].title} {FIGURES[self.figure].text(value)}"


FVU = Criterion("val/fvu")


@dataclass(frozen=True)
class Evidence:
    """What is known about the champion of one grid and purpose."""

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
    criterion: Criterion = FVU
    half_widths: Figures = field(default_factory=dict)
    """Half of the interval of each figure; empty without confirmations."""
    beaten_by: tuple[str, ...] = ()
    """Baselines that are at least as good, the best first."""
    reasons: tuple[str, ...] = ()
    """Why it is unproven."""
    remarks: tuple[str, ...] = ()
    """Baselines that are better at the figure and do not compete."""

    @property
    def epochs(self) -> tuple[int, ...]:
        """The epochs of the runs that the figures are of."""
        return tuple(run.epochs_done for run in (self.runs if self.half_widths else (self.champion,)))

    @property
    def label(self) -> str:
        """The status with the number of seeds, as a cell of the table: `proven (3)`."""
        if self.status == PENDING:
            return f"pending {sum(run.state in FINISHED for run in self.runs)}/{self.wanted}"
        return f"{self.status} ({len(self.runs)})" if self.runs else self.status

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for champions.json and the champion's export."""
        return {
            "status": self.status,
            "summary": self.summary,
            "figure": self.criterion.figure,
            "trial": self.champion.uid,
            "exported": self.exported.uid,
            "seeds": {run.uid: run.values[SEED_KEY] for run in self.runs},
            "mean": dict(self.figures) if self.half_widths else {},
            "half_width": dict(self.half_widths),
            "beaten_by": list(self.beaten_by),
            "remarks": list(self.remarks),
        }

    @property
    def summary(self) -> str:
        """The status and what it rests on, in one line."""
        if self.status == PENDING:
            return self.label
        seeds = f"{len(self.runs)} seeds" if self.runs else "not confirmed" if self.wanted else "one seed"
        start = f"{self.status}, {seeds}"
        if self.reasons:
            return f"{start}: {'; '.join(self.reasons)}"
        if not self.half_widths:
            return start
        shown = [FIGURES[name] for name in dict.fromkeys([self.criterion.figure, *JUDGED_ON])]
        known = (
            f"{figure.title} {figure.text(self.figures[figure.name])} +- {figure.text(self.half_widths[figure.name])}"
            for figure in shown
            if figure.name in self.half_widths
        )
        return f"{start}: {', '.join(known)} (95 % interval)"


def gather_evidence(
    champion: TrialRecord,
    runs: Sequence[TrialRecord],
    seeds: int,
    baselines: Mapping[str, Figures],
    criterion: Criterion = FVU,
) -> Evidence:
    """Return how far the champion of a grid and purpose can be trusted.

    Args:
        champion: the search's winner.
        runs: its confirmations.
        seeds: confirmations wanted, at least 2, or 0 for none.
        baselines: name -> figures, every baseline of the grid.
        criterion: what it is judged by.
    """
    runs = tuple(runs) if seeds else ()
    if not runs:
        whose, own = "the search's own run" if seeds else "the only run", champion.figures
        beaten_by, reasons, remarks = _compare(baselines, own, criterion, whose)
        if reasons or not seeds:
            status = UNPROVEN if reasons else UNCONFIRMED
            return Evidence(champion, status, seeds, (), own, champion, criterion, {}, beaten_by, reasons, remarks)
    if len(runs) < seeds or any(run.state not in FINISHED for run in runs):
        return Evidence(champion, PENDING, seeds, runs, champion.figures, champion, criterion)
    complete = [run for run in runs if run.state == "complete" and criterion.figure in run.figures]
    failed = tuple(
        f"seed {run.values[SEED_KEY]} ({run.uid}) {run.state}: {run.reason or f'without {criterion.figure}'}"
        for run in runs
        if run not in complete
    )
    if len(complete) < MIN_SEEDS:
        return Evidence(champion, UNPROVEN, seeds, runs, champion.figures, champion, criterion, reasons=failed)
    means, half_widths = intervals(complete)
    worse = {name: _worse_end(name, means[name], half_widths[name]) for name in means}
    beaten_by, rivals, remarks = _compare(baselines, worse, criterion, "the worse end of the champion's interval")
    reasons = (*rivals, *failed)
    status = UNPROVEN if reasons else PROVEN
    exported = _middle(complete, criterion)
    return Evidence(champion, status, seeds, runs, means, exported, criterion, half_widths, beaten_by, reasons, remarks)


def intervals(runs: Sequence[TrialRecord]) -> tuple[dict[str, float], dict[str, float]]:
    """Return mean and half of the 95 % interval (Student's t) of every figure that all runs have; at least two runs."""
    names = [name for name in runs[0].figures if all(name in run.figures for run in runs)]
    values = {name: [run.figures[name] for run in runs] for name in names}
    return {name: fmean(v) for name, v in values.items()}, {name: half_width(v) for name, v in values.items()}


def half_width(values: Sequence[float]) -> float:
    """Return half of the 95 % interval of the values' mean (Student's t); at least two values."""
    return two_sided_quantile(LEVEL, len(values) - 1) / math.sqrt(len(values)) * stdev(values)


def confirmations_of(uid: str, runs: Iterable[TrialRecord]) -> list[TrialRecord]:
    """Return a trial's confirmations, without those that were given up when another trial took its place."""
    return [run for run in runs if run.confirms == uid and run.state != "pruned"]


def judged_text(figures: Figures) -> str:
    """Return the judged figures that are known: `fvu 0.0123, swd 0.088`."""
    known = [FIGURES[name] for name in JUDGED_ON if name in figures]
    return ", ".join(f"{figure.title} {figure.text(figures[figure.name])}" for figure in known)


def _worse_end(name: str, mean: float, half: float) -> float:
    """Return the worse end of an interval; for a figure without a better direction the upper one."""
    return mean - half if name in FIGURES and not FIGURES[name].lower_is_better else mean + half


def _compare(
    baselines: Mapping[str, Figures], worse: Figures, criterion: Criterion, whose: str
) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
    """Return the baselines that are at least as good, why the champion is unproven, and remarks."""
    own = worse.get(criterion.figure)
    if own is None:
        return (), (f"not every seed has {criterion.figure}",), ()
    known = [name for name, figures in baselines.items() if criterion.figure in figures]
    rivals = [name for name in known if not criterion.beats(own, baselines[name][criterion.figure])]
    rivals = best_first(criterion.figure, rivals, baselines)
    unmet = {name: [t for t in criterion.entry if not t.met(baselines[name])] for name in rivals}
    names = [name for name in rivals if not unmet[name]]
    outside = [name for name in rivals if unmet[name]]
    reasons, remarks = [], []
    if names:
        reasons.append(f"{_first_of(names, baselines, criterion)} at least as good as {whose} ({criterion.text(own)})")
    if outside:
        best, *others = outside
        also = f", nor {'does' if len(others) == 1 else 'do'} {', '.join(map(title_of, others))}" if others else ""
        miss = unmet[best][0].miss(baselines[best])
        remarks.append(f"{_valued(best, baselines, criterion)} does not compete: it misses {miss}{also}")
    reasons += [f"{whose} misses {target.miss(worse)}" for target in criterion.targets if not target.met(worse)]
    return tuple(names), tuple(reasons), tuple(remarks)


def _first_of(names: Sequence[str], baselines: Mapping[str, Figures], criterion: Criterion) -> str:
    """Return the first baseline with its figure, how many there are besides, and the verb."""
    first, count = _valued(names[0], baselines, criterion), len(names) - 1
    if not count:
        return f"{first} is"
    return f"{first} and {title_of(names[1]) if count == 1 else f'{count} other baselines'} are"


def _valued(name: str, baselines: Mapping[str, Figures], criterion: Criterion) -> str:
    return f"{title_of(name)} ({criterion.text(baselines[name][criterion.figure])})"


def _middle(complete: Sequence[TrialRecord], criterion: Criterion) -> TrialRecord:
    """Return the run of the median figure; of an even number, the worse of the two in the middle.

    The best would be picked for its luck. At least half of the runs are at least as good as this one.
    """
    ordered = sorted(complete, key=criterion.best_first)
    return ordered[len(ordered) // 2]

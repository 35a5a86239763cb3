"""The tables of a sweep's page: the winner of every grid, every trial, and what the sweep cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figure import TRIALS, Figure
from tokconv.evaluation.figures import FIGURES, JUDGED_ON, shown_in
from tokconv.sweep.judge.evidence import PROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import FVU, Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.kinds import kind_fronts, readability
from tokconv.sweep.report.text import STATES, best_baseline, cell, heading, values_text
from tokconv.system.terminal import duration

EVIDENCE = "evidence"


@dataclass(frozen=True)
class Winner:
    """One row of the winners' table; `evidence` is the cell after those of the purpose, before those of figures."""

    cells: tuple[str, ...]
    evidence: str
    is_proven: bool
    figures: tuple[str, ...]


def winner_headings(figures: Sequence[Figure]) -> list[str]:
    """Return the headings of the winners' table with these figures."""
    return ["grid", "ratio", "purpose", "judged by", "champion", "best baseline", EVIDENCE, *map(heading, figures)]


def winners(verdict: Verdict, figures: Sequence[Figure]) -> list[Winner]:
    """Return a grid's rows of the winners' table, one per purpose; only figures that decide have an interval."""
    rows = []
    for number, award in enumerate(verdict.awards):
        figure, evidence = FIGURES[award.criterion.figure], award.evidence
        rival = best_baseline(award, verdict.baselines)
        grid = ("", "") if number else (f"{verdict.grid} x {verdict.grid}", f"{verdict.ratio:.3g}x")
        reference = "" if rival is None else f"{title_of(rival[0])} {figure.text(rival[1])}"
        head = (*grid, award.purpose.name, figure.title)
        if evidence is None:
            why = "no champion" if verdict.trials else "no complete trial"
            rows.append(Winner((*head, "none", reference), why, is_proven=False, figures=("",) * len(figures)))
            continue
        shown = {name: width for name, width in evidence.half_widths.items() if name in (*JUDGED_ON, figure.name)}
        own, *others = (cell(one, evidence.figures, shown) for one in (figure, *figures))
        missed = "" if award.meets_targets else ", misses a published target"
        text = f"{evidence.label}, trial {evidence.champion.uid}{missed}"
        is_proven = evidence.status == PROVEN
        rows.append(Winner((*head, own, reference), text, is_proven=is_proven, figures=tuple(others)))
    return rows


def kind_headings(sweep: SweepSnapshot) -> list[str]:
    """Return the headings of the table of the kinds."""
    return ["grid", "kind", *(f"best {FIGURES[name].title}" for name in (FVU, readability(sweep.verdicts))), "trials"]


def kind_rows(sweep: SweepSnapshot) -> list[list[str]]:
    """Return one row per grid and kind of compressor: its best figures, and how many complete trials it has."""
    return [
        [
            "" if number else f"{verdict.grid} x {verdict.grid}",
            found.kind,
            *(FIGURES[name].text(found.best(name)) for name in (FVU, found.readability)),
            str(found.trials),
        ]
        for verdict in sweep.verdicts
        for number, found in enumerate(kind_fronts(sweep, verdict))
    ]


def trial_headings() -> list[str]:
    """Return the headings of the table of all trials."""
    return ["trial", "state", "ratio", "epochs", *(figure.title for figure in shown_in(TRIALS)), "values", "reason"]


def trial_row(trial: TrialRecord) -> list[str]:
    """Return a trial's row of the table of all trials."""
    return [
        trial.uid,
        STATES[trial.state],
        f"{trial.ratio:.3g}x",
        str(trial.epochs_done),
        *(figure.text(trial.figures.get(figure.name)) for figure in shown_in(TRIALS)),
        values_text(trial.values),
        printable(trial.reason) or ("" if trial.confirms is None else f"confirms {trial.confirms}"),
    ]


def cost(sweep: SweepSnapshot) -> list[tuple[str, str]]:
    """Return durations and what they are: of the sweep, the search, the confirmations, and what stopping saved."""
    resources = sweep.spec.resources
    gpus = resources.gpus_per_worker * resources.workers
    reserved, unit = (gpus, "GPU time") if gpus else (resources.cpus_per_worker * resources.workers, "CPU time")
    stopped = [trial for trial in sweep.trials.values() if trial.state == "pruned" and trial.epochs_done]
    saved = sum((t.seconds or 0.0) / t.epochs_done * (sweep.epochs - t.epochs_done) for t in stopped)
    return [
        (duration((sweep.last - sweep.started) / 1000), "from the start of this run to its last event"),
        (duration(_seconds(sweep.trials.values()) * reserved), f"{unit} of the search"),
        (duration(_seconds(sweep.confirmations.values()) * reserved), f"{unit} of the confirmations"),
        (duration(saved * reserved), f"{unit} saved by early stopping"),
    ]


def _seconds(trials: Iterable[TrialRecord]) -> float:
    return sum(trial.seconds or 0.0 for trial in trials)

"""The tables of a sweep's page: what won, every trial, and what the sweep cost."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figure import TRIALS, Figure
from tokconv.evaluation.figures import FIGURES, shown_in
from tokconv.sweep.judge.evidence import PROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import FVU
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.kinds import kind_fronts, readability
from tokconv.sweep.report.outcome import LOST, WON, outcomes
from tokconv.sweep.report.text import STATES, cell, number, short_names
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.system.terminal import duration

OUTCOMES = (
    *("ratio", "purpose", "decided by", "best trained", "best closed form"),
    *("trained to closed form", "result"),
)
"""Headings of the table of what won."""


@dataclass(frozen=True)
class OutcomeRow:
    """One row of the table of what won."""

    cells: tuple[tuple[str, str, bool], ...]
    """Heading, text, and whether it is the winner's."""
    state: str
    proven: bool


@dataclass(frozen=True)
class TrialRow:
    """One row of the table of all trials."""

    cells: tuple[tuple[str, float | str], ...]
    """Text, and what it is sorted by."""
    won: str
    """What it is the champion for; "" for other trials."""


def outcome_rows(sweep: SweepSnapshot) -> list[OutcomeRow]:
    """Return one row per grid and purpose; figures of trained compressors are means with half of their interval."""
    rows = []
    for one in outcomes(sweep):
        figure, evidence, rival = FIGURES[one.award.criterion.figure], one.award.evidence, one.rival
        trained = "" if evidence is None else cell(replace(figure, floor=""), evidence.figures, evidence.half_widths)
        closed = "" if rival is None else f"{title_of(rival[0])} {figure.text(rival[1])}"
        uid = "" if evidence is None else f" (trial {evidence.champion.uid})"
        better = "lower" if figure.lower_is_better else "higher"
        lost = one.state == LOST and rival is not None and one.winner == title_of(rival[0])
        texts = (
            (f"{one.verdict.ratio:.3g}x ({one.verdict.name})", False),
            (one.award.purpose.name, False),
            (f"{figure.title}, {better} is better", False),
            (f"{trained}{uid}" if trained else "none", one.state == WON),
            (closed or "none", lost),
            (one.difference or "-", False),
            (one.words, False),
        )
        cells = tuple((name, text, won) for name, (text, won) in zip(OUTCOMES, texts, strict=True))
        rows.append(OutcomeRow(cells, one.state, evidence is not None and evidence.status == PROVEN))
    return rows


def terms(figures: Sequence[Figure]) -> list[tuple[str, str]]:
    """Return what the columns of figures mean: title and explanation, with that of the floor."""
    floors = {one.name: f"; in brackets the floor: {FIGURES[one.floor].meaning}" for one in figures if one.floor}
    return [(one.title, f"{one.explanation}{floors.get(one.name, '')}") for one in figures]


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


def searched_keys(sweep: SweepSnapshot) -> list[str]:
    """Return the keys that get a column: the searched ones but the grid, which is one already, and other values."""
    runs = (*sweep.trials.values(), *sweep.confirmations.values())
    others = {key for trial in runs for key in trial.values} - sweep.spec.search.keys() - {GRID_KEY}
    return [*(key for key in sweep.spec.search if key != GRID_KEY), *sorted(others)]


def trial_headings(sweep: SweepSnapshot) -> list[str]:
    """Return the headings of the table of all trials."""
    keys = short_names(searched_keys(sweep)).values()
    figures = [figure.title for figure in shown_in(TRIALS)]
    return ["trial", "champion", "state", "ratio", "epochs", *figures, *keys, "note"]


def trial_rows(sweep: SweepSnapshot) -> list[TrialRow]:
    """Return one row per trial and confirmation, with one cell per searched key."""
    won = {uid: words for verdict in sweep.verdicts for uid, words in verdict.winners.items()}
    keys = searched_keys(sweep)
    return [
        TrialRow(
            tuple(_sortable(*pair) for pair in trial_cells(trial, won.get(trial.uid, ""), keys)), won.get(trial.uid, "")
        )
        for trial in (*sweep.trials.values(), *sweep.confirmations.values())
    ]


def trial_cells(trial: TrialRecord, won: str, keys: Sequence[str]) -> list[tuple[str, Any]]:
    """Return text and value of a trial's cells."""
    figures = [
        (figure.text(trial.figures.get(figure.name)), trial.figures.get(figure.name)) for figure in shown_in(TRIALS)
    ]
    note = printable(trial.reason) or ("" if trial.confirms is None else f"confirms {trial.confirms}")
    return [
        (trial.uid, trial.uid),
        (won, won),
        (STATES[trial.state], STATES[trial.state]),
        (f"{trial.ratio:.3g}x", trial.ratio),
        (str(trial.epochs_done), trial.epochs_done),
        *figures,
        *((number(trial.values[key]), trial.values[key]) if key in trial.values else ("", None) for key in keys),
        (note, note),
    ]


def _sortable(text: str, value: Any) -> tuple[str, float | str]:
    """Return a cell's text and what it is sorted by: a number, a text, or "" if it is empty."""
    if value is None:
        return text, ""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return text, float(value) if is_number else printable(value)


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

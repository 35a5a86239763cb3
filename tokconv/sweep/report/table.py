"""The result of a sweep as a table: on a terminal, in a log, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokconv.evaluation.baselines.registry import shown_in as baselines_in
from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figure import SWEEP, Figure
from tokconv.evaluation.figures import FIGURES, shown_in
from tokconv.evaluation.purposes import compared_text
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Award, Verdict
from tokconv.sweep.report.text import (
    INTERVAL_LEGEND,
    best_baseline,
    cell,
    half_width_cell,
    heading,
    legend,
    winning_baselines,
)
from tokconv.sweep.spec.rules import PUBLISHED, PUBLISHED_NOTE

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

COLUMNS = ("grid", "tokens", "ratio", "compressor")
"""Columns before the figures; behind them is `targets`."""
ASCII_HEAD = "\n".join(["    ", "    ", " -- ", *["    "] * 5]) + "\n"
"""rich's box SIMPLE_HEAD in ASCII: a rule below the head and nothing else."""
LOG_WIDTH = 120
"""Columns of a log, which has no width of its own."""


def print_result(sweep: SweepSnapshot, console: Console | None = None) -> None:
    """Print the table with its notes; in plain ASCII if standard output is no terminal.

    A terminal that is too narrow for all figures gets those that decide, and of the others the first of the registry.
    What nothing wins is left out: the last lines of a sweep say it (`unproven_notes`).
    """
    from rich.box import Box
    from rich.console import Console
    from rich.measure import Measurement

    console = widen(console or Console())
    unlimited = console.options.update(width=10_000)
    figures = shown_figures(sweep.verdicts)
    table = result_table(sweep.verdicts, figures)
    while figures and Measurement.get(console, unlimited, table).maximum > console.width:
        figures = _without_last(figures, sweep.verdicts)
        table = result_table(sweep.verdicts, figures)
    if not console.is_terminal:
        table.box = Box(ASCII_HEAD, ascii=True)
    console.print(table)
    for line in (*notes(sweep.verdicts, findings=False), *_legends(sweep, figures)):
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def widen(console: Console) -> Console:
    """Return the console, wide enough if it is no terminal: rich assumes 80 columns, which cut cells off."""
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    return console


def result_table(verdicts: Sequence[Verdict], figures: Sequence[Figure]) -> Table:
    """Return one block of rows per grid: its champions and the baselines of the registry, with these figures."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Champions of every grid", title_style="bold", padding=(0, 1, 0, 0))
    for column in headings(figures):
        table.add_column(column, justify="left" if column == "compressor" else "right", no_wrap=True)
    for verdict in verdicts:
        for cells, won in result_rows(verdict, figures):
            table.add_row(*cells, style="bold" if won else "dim")
        table.add_section()
    return table


def summary_markdown(sweep: SweepSnapshot) -> str:
    """Return the same table and notes in Markdown."""
    figures = shown_figures(sweep.verdicts)
    columns = headings(figures)
    lines = [columns, ["---" if column == "compressor" else "---:" for column in columns]]
    for verdict in sweep.verdicts:
        for cells, won in result_rows(verdict, figures):
            lines.append([f"**{text}**" if text and won else text for text in cells])
    table = [f"| {' | '.join(line)} |" for line in lines]
    remarks = [f"- {note}" for note in notes(sweep.verdicts)]
    return "\n".join([*table, "", *remarks, "", " ".join(_legends(sweep, figures)), ""])


def notes(verdicts: Sequence[Verdict], *, findings: bool = True) -> list[str]:
    """Return one line for everything about the champions that the table does not say.

    Every purpose of a grid has one line on whether its champion beats the best closed form.

    Args:
        verdicts: one per grid.
        findings: with what nothing wins, and why.
    """
    found = []
    for verdict in verdicts:
        if not verdict.trials:
            found.append(f"{verdict.name}: no trial finished at this grid")
            continue
        for award in verdict.awards:
            where = f"{verdict.name}, {award.purpose.name}"
            if findings and award.finding:
                found.append(f"{where}: no champion: {award.finding}")
            if award.evidence is not None:
                found += [f"{where}: {text}" for text in (_comparison(award, verdict), _epoch(award)) if text]
                found += [f"{where}: {remark}" for remark in award.evidence.remarks]
        missed = {(uid, award.missed): None for uid, won in verdict.champions.items() for award in won if award.missed}
        found += [f"{verdict.name}: trial {uid} misses {', '.join(targets)}" for uid, targets in missed]
    return found + list(dict.fromkeys(line for verdict in verdicts for line in verdict.left_out))


def _comparison(award: Award, verdict: Verdict) -> str:
    """Return that a champion beats the best closed form; "" if it does not, which its finding says."""
    rival, criterion = best_baseline(award, verdict.baselines), award.criterion
    if award.evidence is None or award.finding or rival is None or criterion.figure not in award.evidence.figures:
        return ""
    return compared_text(criterion.figure, award.evidence.figures[criterion.figure], *rival)


def _epoch(award: Award) -> str:
    """Return which epoch of a run is the champion, unless it is the last."""
    if award.evidence is None:
        return ""
    run = award.evidence.exported
    best, last = int(run.figures.get("epoch", 0)), int(run.figures.get("epochs", 0))
    start = ", the closed form that it starts at" if best == 0 else ""
    return f"run {run.uid} is judged and exported after epoch {best} of {last}, its best{start}" if best < last else ""


def shown_figures(verdicts: Sequence[Verdict]) -> list[Figure]:
    """Return the registry's figures for this table, and those that decide, that any champion or baseline has."""
    evidence = [award.evidence for verdict in verdicts for award in verdict.awards if award.evidence is not None]
    known = {name for verdict in verdicts for figures in verdict.baselines.values() for name in figures}
    known |= {name for one in evidence for name in one.figures}
    wanted = {figure.name for figure in shown_in(SWEEP)} | _deciding(verdicts)
    return [figure for figure in FIGURES.values() if figure.name in wanted & known]


def _deciding(verdicts: Sequence[Verdict]) -> set[str]:
    return {award.criterion.figure for verdict in verdicts for award in verdict.awards}


def _without_last(figures: Sequence[Figure], verdicts: Sequence[Verdict]) -> list[Figure]:
    """Return the figures without the last one that decides nothing; without the last one if all decide."""
    deciding = _deciding(verdicts)
    last = next((figure for figure in reversed(figures) if figure.name not in deciding), figures[-1])
    return [figure for figure in figures if figure is not last]


def headings(figures: Sequence[Figure]) -> list[str]:
    """Return the headings of the result's table."""
    return [*COLUMNS, *map(heading, figures), "targets"]


def result_rows(
    verdict: Verdict, figures: Sequence[Figure], *, every: bool = False
) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of every champion, of its evidence and of baselines, and whether it is a champion's row.

    A trial that wins for several purposes has one row, or one for each epoch that it is judged at. Besides the
    registry's baselines for this table there are those that win at a figure that decides, or `every` one.
    """
    grid, blank = [verdict.name, str(verdict.grid**2), f"{verdict.ratio:.3g}x"], ["", "", ""]
    champions: dict[tuple[str, tuple[int, ...]], list[Award]] = {}
    for uid, won in verdict.champions.items():
        for award in won:
            assert award.evidence is not None
            champions.setdefault((uid, award.evidence.epochs), []).append(award)
    if not champions:
        what = "no champion" if verdict.trials else "none finished"
        yield [*grid, what, *[""] * len(figures), ""], True
    for number, ((uid, _), awards) in enumerate(champions.items()):
        evidence = awards[0].evidence
        assert evidence is not None
        cells = [cell(figure, evidence.figures) for figure in figures]
        targets = "yes" if awards[0].meets_targets else "missed"
        purposes = ", ".join(award.purpose.name for award in awards)
        yield [*(blank if number else grid), f"{purposes}: {uid}", *cells, targets], True
        first, *others = _labels(awards)
        yield [*blank, first, *(half_width_cell(figure, evidence.half_widths) for figure in figures), ""], False
        for label in others:
            yield [*blank, label, *[""] * len(figures), ""], False
    wanted = {entry.name for entry in baselines_in(SWEEP)} | winning_baselines(verdict)
    for name, known in verdict.baselines.items():
        if every or name in wanted:
            yield [*blank, title_of(name), *(cell(figure, known) for figure in figures), ""], False


def _labels(awards: Sequence[Award]) -> list[str]:
    """Return the evidence of a trial's awards: `proven (3)`, or one line each with the purposes if they differ."""
    found: dict[str, list[str]] = {}
    for award in awards:
        if award.evidence is not None:
            found.setdefault(award.evidence.label, []).append(award.purpose.name)
    return list(found) if len(found) == 1 else [f"{label}: {', '.join(names)}" for label, names in found.items()]


def _judged_at(figure: str) -> str:
    return "at each trial's best epoch" if FIGURES[figure].every_epoch else "which only the last epoch has"


def _legends(sweep: SweepSnapshot, figures: Sequence[Figure]) -> list[str]:
    return [f"{legend(figures)}.", *rules_text(sweep)]


def rules_text(sweep: SweepSnapshot) -> list[str]:
    """Return one line each for the purposes, the published targets, the intervals and the protocol."""
    lines = []
    judged = {award.purpose.name: award for verdict in sweep.verdicts for award in verdict.awards}
    lines += [
        f"{name} ({'lowest' if FIGURES[award.criterion.figure].lower_is_better else 'highest'} "
        f"{FIGURES[award.criterion.figure].title}, {_judged_at(award.criterion.figure)}): {award.purpose.meaning}"
        for name, award in judged.items()
    ]
    lines.append(f"targets, as published: {' and '.join(map(str, PUBLISHED))}; {PUBLISHED_NOTE}")
    evidence = [award.evidence for verdict in sweep.verdicts for award in verdict.awards]
    if any(found is not None and found.half_widths for found in evidence):
        lines.append(f"{INTERVAL_LEGEND}, of which there are (n); the row above holds their means.")
    return [*lines, f"evaluation protocol {sweep.protocol}"]

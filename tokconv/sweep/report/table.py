"""The result of a sweep as a table: on a terminal, in a log, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokconv.evaluation.baselines.registry import shown_in as baselines_in
from tokconv.evaluation.figure import SWEEP, Figure
from tokconv.evaluation.figures import FIGURES, shown_in
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Award, Verdict
from tokconv.sweep.report.text import INTERVAL_LEGEND, cell, half_width_cell, heading, legend
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

    A terminal that is too narrow for all figures gets the first ones of the registry.
    """
    from rich.box import Box
    from rich.console import Console
    from rich.measure import Measurement

    console = widen(console or Console())
    unlimited = console.options.update(width=10_000)
    figures = shown_figures(sweep.verdicts)
    table = result_table(sweep.verdicts, figures)
    while figures and Measurement.get(console, unlimited, table).maximum > console.width:
        table = result_table(sweep.verdicts, figures := figures[:-1])
    if not console.is_terminal:
        table.box = Box(ASCII_HEAD, ascii=True)
    console.print(table)
    for line in (*notes(sweep.verdicts), *_legends(sweep, figures)):
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
    for column in _headings(figures):
        table.add_column(column, justify="left" if column == "compressor" else "right", no_wrap=True)
    for verdict in verdicts:
        for cells, won in _rows(verdict, figures):
            table.add_row(*cells, style="bold" if won else "dim")
        table.add_section()
    return table


def summary_markdown(sweep: SweepSnapshot) -> str:
    """Return the same table and notes in Markdown."""
    figures = shown_figures(sweep.verdicts)
    columns = _headings(figures)
    lines = [columns, ["---" if column == "compressor" else "---:" for column in columns]]
    for verdict in sweep.verdicts:
        for cells, won in _rows(verdict, figures):
            lines.append([f"**{text}**" if text and won else text for text in cells])
    table = [f"| {' | '.join(line)} |" for line in lines]
    remarks = [f"- {note}" for note in notes(sweep.verdicts)]
    return "\n".join([*table, "", *remarks, "", " ".join(_legends(sweep, figures)), ""])


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one line for everything about the champions that the table cannot show: what nothing wins, and why."""
    found = []
    for verdict in verdicts:
        if not verdict.trials:
            found.append(f"{verdict.name}: no trial finished at this grid")
            continue
        for award in verdict.awards:
            where = f"{verdict.name}, {award.purpose.name}"
            if award.finding:
                found.append(f"{where}: no champion: {award.finding}")
            if award.evidence is not None:
                found += [f"{where}: {remark}" for remark in award.evidence.remarks]
        missed = {uid: awards[0].missed for uid, awards in verdict.champions.items() if awards[0].missed}
        found += [f"{verdict.name}: trial {uid} misses {', '.join(targets)}" for uid, targets in missed.items()]
    return found + list(dict.fromkeys(line for verdict in verdicts for line in verdict.left_out))


def shown_figures(verdicts: Sequence[Verdict]) -> list[Figure]:
    """Return the registry's figures for this table, and those that decide, that any champion or baseline has."""
    awards = [award for verdict in verdicts for award in verdict.awards]
    known = {name for verdict in verdicts for figures in verdict.baselines.values() for name in figures}
    known |= {name for award in awards if award.evidence is not None for name in award.evidence.figures}
    wanted = {figure.name for figure in shown_in(SWEEP)} | {award.criterion.figure for award in awards}
    return [figure for figure in FIGURES.values() if figure.name in wanted & known]


def _headings(figures: Sequence[Figure]) -> list[str]:
    return [*COLUMNS, *map(heading, figures), "targets"]


def _rows(verdict: Verdict, figures: Sequence[Figure]) -> Iterator[tuple[list[str], bool]]:
    """Yield the cells of every champion, of its evidence and of every baseline, and whether it is a champion's row.

    A trial that wins for several purposes has one row.
    """
    grid, blank = [verdict.name, str(verdict.grid**2), f"{verdict.ratio:.3g}x"], ["", "", ""]
    champions = verdict.champions
    if not champions:
        what = "no champion" if verdict.trials else "none finished"
        yield [*grid, what, *[""] * len(figures), ""], True
    for number, (uid, awards) in enumerate(champions.items()):
        # All awards of a trial rest on the same runs.
        evidence = awards[0].evidence
        assert evidence is not None
        cells = [cell(figure, evidence.figures) for figure in figures]
        targets = "yes" if awards[0].meets_targets else "missed"
        purposes = ", ".join(award.purpose.name for award in awards)
        yield [*(blank if number else grid), f"{purposes}: {uid}", *cells, targets], True
        cells = [half_width_cell(figure, evidence.half_widths) for figure in figures]
        yield [*blank, labels(awards), *cells, ""], False
    for entry in baselines_in(SWEEP):
        if entry.name in verdict.baselines:
            cells = [cell(figure, verdict.baselines[entry.name]) for figure in figures]
            yield [*blank, entry.title, *cells, ""], False


def labels(awards: Sequence[Award]) -> str:
    """Return the evidence of a trial's awards: `proven (3)`, or per purpose if they differ."""
    found = {award.purpose.name: award.evidence.label for award in awards if award.evidence is not None}
    if len(set(found.values())) == 1:
        return next(iter(found.values()))
    return ", ".join(f"{purpose} {label}" for purpose, label in found.items())


def _legends(sweep: SweepSnapshot, figures: Sequence[Figure]) -> list[str]:
    lines = [f"{legend(figures)}."]
    judged = {award.purpose.name: award for verdict in sweep.verdicts for award in verdict.awards}
    lines += [
        f"{name} ({'lowest' if FIGURES[award.criterion.figure].lower_is_better else 'highest'} "
        f"{FIGURES[award.criterion.figure].title}): {award.purpose.meaning}"
        for name, award in judged.items()
    ]
    lines.append(f"targets, as published: {' and '.join(map(str, PUBLISHED))}; {PUBLISHED_NOTE}")
    evidence = [award.evidence for verdict in sweep.verdicts for award in verdict.awards]
    if any(found is not None and found.half_widths for found in evidence):
        lines.append(f"{INTERVAL_LEGEND}, of which there are (n); the row above holds their means.")
    return [*lines, f"evaluation protocol {sweep.protocol}"]

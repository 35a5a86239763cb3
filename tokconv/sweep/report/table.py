"""The result of a sweep as a table: on a terminal, in a log, and in Markdown."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from tokconv.evaluation.baselines.registry import shown_in as baselines_in
from tokconv.evaluation.figure import SWEEP, Figure
from tokconv.evaluation.figures import shown_in
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.report.text import INTERVAL_LEGEND, cell, half_width_cell, heading, legend

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
    """Return one block of rows per grid: its champion and the baselines of the registry, with these figures."""
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Best compressor at every grid", title_style="bold", padding=(0, 1, 0, 0))
    for column in _headings(figures):
        table.add_column(column, justify="left" if column == "compressor" else "right", no_wrap=True)
    for verdict in verdicts:
        for number, cells in enumerate(_rows(verdict, figures)):
            table.add_row(*cells, style="dim" if number else "bold")
        table.add_section()
    return table


def summary_markdown(sweep: SweepSnapshot) -> str:
    """Return the same table and notes in Markdown."""
    figures = shown_figures(sweep.verdicts)
    columns = _headings(figures)
    lines = [columns, ["---" if column == "compressor" else "---:" for column in columns]]
    for verdict in sweep.verdicts:
        winner, *others = _rows(verdict, figures)
        lines += [[f"**{text}**" if text else "" for text in winner], *others]
    table = [f"| {' | '.join(line)} |" for line in lines]
    remarks = [f"- {note}" for note in notes(sweep.verdicts)]
    return "\n".join([*table, "", *remarks, "", " ".join(_legends(sweep, figures)), ""])


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """Return one line for each `nearest`, `missed`, `unproven` and `none finished` of the table: what it means."""
    found = []
    for verdict in verdicts:
        if verdict.champion is None:
            found.append(f"{verdict.name}: no trial finished at this grid")
        elif verdict.missed:
            found.append(
                f"{verdict.name}: {'nearest' if verdict.nearest else 'in the mean'}, misses {', '.join(verdict.missed)}"
            )
        if verdict.evidence is not None and verdict.evidence.reasons:
            found.append(f"{verdict.name}: {verdict.evidence.summary}")
    return found


def shown_figures(verdicts: Sequence[Verdict]) -> list[Figure]:
    """Return the registry's figures for this table that any champion or baseline has."""
    known = {name for verdict in verdicts for figures in verdict.baselines.values() for name in figures}
    known |= {name for verdict in verdicts if verdict.evidence is not None for name in verdict.evidence.figures}
    return [figure for figure in shown_in(SWEEP) if figure.name in known]


def _headings(figures: Sequence[Figure]) -> list[str]:
    return [*COLUMNS, *map(heading, figures), "targets"]


def _rows(verdict: Verdict, figures: Sequence[Figure]) -> Iterator[list[str]]:
    """Yield the champion's cells, then those of its evidence and of every baseline."""
    grid = (verdict.name, str(verdict.grid**2), f"{verdict.ratio:.3g}x")
    evidence = verdict.evidence
    if evidence is None:
        yield [*grid, "none finished", *[""] * len(figures), ""]
    else:
        targets = "yes" if verdict.meets_targets else "nearest" if verdict.nearest else "missed"
        cells = (cell(figure, evidence.figures) for figure in figures)
        yield [*grid, f"trial {evidence.champion.uid}", *cells, targets]
        cells = (half_width_cell(figure, evidence.half_widths) for figure in figures)
        yield ["", "", "", evidence.label, *cells, ""]
    for entry in baselines_in(SWEEP):
        if entry.name in verdict.baselines:
            cells = (cell(figure, verdict.baselines[entry.name]) for figure in figures)
            yield ["", "", "", entry.title, *cells, ""]


def _legends(sweep: SweepSnapshot, figures: Sequence[Figure]) -> list[str]:
    lines = [f"{legend(figures)}."]
    if any(verdict.evidence is not None and verdict.evidence.half_widths for verdict in sweep.verdicts):
        lines.append(f"{INTERVAL_LEGEND}, of which there are (n); the row above holds their means.")
    return [*lines, f"evaluation protocol {sweep.protocol}"]

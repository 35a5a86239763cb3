"""Held-out figures as a text table: one row per codec, one column per figure, the best of each column in bold."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TextIO

from tokconv.evaluation.figure import EVALUATE, Figure
from tokconv.evaluation.figures import shown_in

Figures = Mapping[str, float]
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
REAL = "real tokens"


def is_bold(stream: TextIO) -> bool:
    """Return whether a stream shows bold: a terminal that can, of a user who has not asked for plain text."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def figure_table(rows: Mapping[str, Figures], *, bold: bool | None = None) -> str:
    """Return the rows, and below them what real tokens get, in the columns that any row has.

    Args:
        rows: title -> figures.
        bold: mark the best of each column for a terminal; None asks standard output.
    """
    columns = _columns(rows.values())
    texts = {title: [column.text(row.get(column.name)) for column in columns] for title, row in rows.items()}
    real = [column.text(_first(rows.values(), column.floor)) for column in columns]
    lines = [["", *(column.title for column in columns)]]
    lines += [[title, *cells] for title, cells in texts.items()]
    lines += [[REAL, *real]] if any(real) else []
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) + 1)]
    show_bold = is_bold(sys.stdout) if bold is None else bold
    best = [_best(rows.values(), column) for column in columns] if show_bold else []
    return "\n".join(_line(line, widths, best if line[0] in texts else []) for line in lines)


def legend(rows: Iterable[Figures]) -> str:
    """Return what the columns of some rows mean, one line per column."""
    columns = _columns(rows)
    width = max(len(column.title) for column in columns)
    return "\n".join(f"  {column.title:<{width}}  {column.explanation}" for column in columns)


def _columns(rows: Iterable[Figures]) -> list[Figure]:
    names = {name for row in rows for name in row}
    return [column for column in shown_in(EVALUATE) if column.name in names]


def _line(cells: Sequence[str], widths: Sequence[int], best: Sequence[str]) -> str:
    padded = [cells[0].ljust(widths[0])]
    for index, (cell, width) in enumerate(zip(cells[1:], widths[1:], strict=True)):
        text = cell.rjust(width)
        padded.append(f"{BOLD}{text}{PLAIN}" if best and cell and cell == best[index] else text)
    return "  ".join(padded).rstrip()


def _best(rows: Iterable[Figures], column: Figure) -> str:
    """Return the best value as text, so that rows that read the same are equally good."""
    return column.text((min if column.lower_is_better else max)(row[column.name] for row in rows if column.name in row))


def _first(rows: Iterable[Figures], figure: str) -> float | None:
    return next((row[figure] for row in rows if figure in row), None)

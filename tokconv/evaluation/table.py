"""Held-out figures as a text table: a row a codec, a column a figure, the best of each column in bold."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

Figures = Mapping[str, float]
BOLD, PLAIN = "\x1b[1m", "\x1b[0m"
REAL = "real tokens"


@dataclass(frozen=True)
class Column:
    """One figure: its name in the protocol, its title, how it is written, which end is good, and what to call it.

    real: the figure that holds what real tokens get here, the best a compressor may hope for.
    """

    figure: str
    title: str
    form: str
    lower_is_better: bool
    meaning: str
    real: str = ""


COLUMNS = (
    Column("val/fvu", "fvu", ".4f", True, "share of variance lost, 0 is perfect, 1 is the mean token"),
    Column("val/gain", "gain", "+z.1%", False, "share of pooling's error that is gone"),
    Column("val/swd", "swd", ".3f", True, "sliced Wasserstein distance to real tokens", "val/swd_floor"),
    Column("val/mmd", "mmd", ".4f", True, "maximum mean discrepancy to real tokens", "val/mmd_floor"),
    Column("val/cosine", "cosine", ".3f", False, "of reconstructed and real tokens"),
    Column("val/cosine_centered", "centred", ".3f", False, "the same without the mean token"),
    Column("val/knn_overlap", "kNN", ".1%", False, "nearest images that stay so", "val/knn_overlap_halves"),
    Column("val/cka", "CKA", ".3f", False, "alignment of image similarities", "val/cka_halves"),
    Column("val/probe_accuracy", "probe", ".1%", False, "accuracy of a linear probe on reconstructed tokens"),
    Column("val/probe_kept", "kept", ".1%", False, "share of the probe's accuracy on real tokens"),
    Column("val/reader_accuracy", "reader", ".1%", False, "accuracy of it on compressed tokens", "val/reader_sampled"),
)


def is_bold(stream: TextIO) -> bool:
    """Whether a stream shows bold: a terminal that can, of a user who has not asked for plain text."""
    return stream.isatty() and os.environ.get("TERM") != "dumb" and not os.environ.get("NO_COLOR")


def figure_table(rows: Mapping[str, Figures], *, bold: bool | None = None) -> str:
    """The rows, and below them what real tokens get, in the columns that any row has.

    Args:
        rows: title -> figures.
        bold: mark the best of each column for a terminal; None asks standard output.
    """
    columns = [column for column in COLUMNS if any(column.figure in row for row in rows.values())]
    texts = {
        title: [_text(figures.get(column.figure), column) for column in columns] for title, figures in rows.items()
    }
    best = [_best(list(rows.values()), column) for column in columns]
    real = [_text(_first(list(rows.values()), column.real), column) for column in columns]
    lines = [["", *(column.title for column in columns)]]
    lines += [[title, *cells] for title, cells in texts.items()]
    lines += [[REAL, *real]] if any(real) else []
    widths = [max(len(line[index]) for line in lines) for index in range(len(columns) + 1)]
    show_bold = is_bold(sys.stdout) if bold is None else bold
    return "\n".join(_line(line, widths, best if show_bold and line[0] in texts else []) for line in lines)


def legend(rows: Sequence[Figures]) -> str:
    """What the columns mean, a line a column."""
    shown = [column for column in COLUMNS if any(column.figure in figures for figures in rows)]
    width = max(len(column.title) for column in shown)
    return "\n".join(f"  {column.title:<{width}}  {column.meaning}" for column in shown)


def _line(cells: Sequence[str], widths: Sequence[int], best: Sequence[str]) -> str:
    padded = [cells[0].ljust(widths[0])]
    for index, (cell, width) in enumerate(zip(cells[1:], widths[1:], strict=True)):
        text = cell.rjust(width)
        padded.append(f"{BOLD}{text}{PLAIN}" if best and cell and cell == best[index] else text)
    return "  ".join(padded).rstrip()


def _best(rows: Sequence[Figures], column: Column) -> str:
    """As it is written, so that rows that read the same are equally good."""
    values = [figures[column.figure] for figures in rows if column.figure in figures]
    return _text((min if column.lower_is_better else max)(values), column)


def _first(rows: Sequence[Figures], figure: str) -> float | None:
    return next((figures[figure] for figures in rows if figure in figures), None)


def _text(value: float | None, column: Column) -> str:
    return "" if value is None else format(value, column.form)

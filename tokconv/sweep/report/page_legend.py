"""The legend of a page's section: one for all its panels, drawn as HTML, so that it wraps at every width."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import plotly.graph_objects as go

OUTLINES = {
    "circle": "M8 3.5a4.5 4.5 0 1 0 .01 0z",
    "square": "M4 4h8v8h-8z",
    "diamond-tall": "M8 1.5l3.5 6.5l-3.5 6.5l-3.5 -6.5z",
    "diamond": "M8 2.5l5.5 5.5l-5.5 5.5l-5.5 -5.5z",
    "triangle-up": "M8 3l5.5 9.5h-11z",
    "triangle-down": "M8 13l5.5 -9.5h-11z",
    "triangle-left": "M3 8l9.5 -5.5v11z",
    "triangle-right": "M13 8l-9.5 -5.5v11z",
    "cross": "M6 3h4v3h3v4h-3v3h-4v-3h-3v-4h3z",
    "x": "M4 2.5l4 4l4 -4l1.5 1.5l-4 4l4 4l-1.5 1.5l-4 -4l-4 4l-1.5 -1.5l4 -4l-4 -4z",
    "pentagon": "M8 2.5l5.7 4.1l-2.2 6.9h-7l-2.2 -6.9z",
    "hexagon": "M8 2.5l4.8 2.7v5.6l-4.8 2.7l-4.8 -2.7v-5.6z",
    "hexagram": "M8 2l1.8 3h3.4l-1.7 3l1.7 3h-3.4l-1.8 3l-1.8 -3h-3.4l1.7 -3l-1.7 -3h3.4z",
    "star": "M8 1.5l1.9 4.4l4.8 .4l-3.6 3.1l1.1 4.7l-4.2 -2.5l-4.2 2.5l1.1 -4.7l-3.6 -3.1l4.8 -.4z",
}
"""Plotly's name of a symbol -> its outline in a box of 16 x 16."""
_LINE = "M1 7h14v2h-14z"


@dataclass(frozen=True)
class Entry:
    """One entry: what a click on it shows or hides in every panel of the section."""

    name: str
    color: str
    outline: str
    """The path of an SVG."""
    hollow: bool
    hidden: bool
    """Whether it is hidden at first."""


def legend_of(figures: Iterable[go.Figure]) -> list[Entry]:
    """Return the entries of some panels, each name once, in the order in which they are drawn.

    An entry is hidden only if every panel hides it.
    """
    found: dict[str, Entry] = {}
    for figure in figures:
        for trace in figure.data:
            if trace.type not in ("scatter", "bar") or not trace.name:
                continue
            before = found.get(trace.name)
            if before is None or (before.hidden and trace.visible != "legendonly"):
                found[trace.name] = _entry(trace)
    return list(found.values())


def _entry(trace: go.Scatter | go.Bar) -> Entry:
    is_bar = trace.type == "bar"
    with_marks = not is_bar and "markers" in trace.mode and (trace.marker.size or 0) > 4
    symbol = str(trace.marker.symbol or "circle") if with_marks else ""
    outline = OUTLINES["square"] if is_bar else OUTLINES[symbol.removesuffix("-open")] if with_marks else _LINE
    color = trace.marker.color if is_bar or with_marks else trace.line.color
    return Entry(trace.name, str(color), outline, symbol.endswith("-open"), trace.visible == "legendonly")

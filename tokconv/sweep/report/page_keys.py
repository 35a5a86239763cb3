"""The page's figures of the searched keys: the values of every trial, and which keys matter."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.report.page_axes import axis
from tokconv.sweep.report.page_figures import FVU, PANEL_HEIGHT, SWD
from tokconv.sweep.report.plots import CHAMPION, TRIAL, shown
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.ranges import Range

AXIS_WIDTH = 110
"""Pixels that an axis of parallel coordinates needs so that its labels do not touch."""
LINES = [[0, CHAMPION], [1, "#9AA0A8"]]
"""Colours from the lowest fvu to the highest: seen on a light and on a dark page, also by the colour-blind."""
BARS = (CHAMPION, TRIAL, "#009E73", "#CC79A7", "#E69F00")
"""Colours of the figures whose keys are shown, by Okabe and Ito."""


def parallel_figure(sweep: SweepSnapshot, verdict: Verdict) -> go.Figure | None:
    """Return a grid's complete trials in parallel coordinates of keys, coloured by fvu; None for fewer than two."""
    trials = [trial for trial in verdict.trials if FVU in trial.figures]
    keys = [key for key in sweep.spec.search if key != GRID_KEY and any(key in trial.values for trial in trials)]
    if len(trials) < 2 or not keys:
        return None
    dimensions = [_dimension(key, sweep.spec.search[key], [trial.values.get(key) for trial in trials]) for key in keys]
    for metric in (SWD, FVU):
        values = [shown(trial.figures, metric) for trial in trials]
        dimensions.append(_log_dimension(FIGURES[metric].title, values))
    colors = [math.log10(shown(trial.figures, FVU)) for trial in trials]
    figure = go.Figure(
        go.Parcoords(
            dimensions=dimensions,
            line={"color": colors, "colorscale": LINES, "cmin": min(colors), "cmax": max(colors)},
            labelangle=0,
        )
    )
    return figure.update_layout(height=PANEL_HEIGHT + 20)


def importance_figure(found: Mapping[str, Mapping[str, float]]) -> go.Figure:
    """Return bars of what each searched key explains, from figure -> key -> share."""
    figure = go.Figure()
    for color, (metric, shares) in zip(itertools.cycle(BARS), found.items(), strict=False):
        figure.add_bar(
            y=[key.split(".", 1)[-1] for key in shares],
            x=list(shares.values()),
            name=FIGURES[metric].title,
            orientation="h",
            marker={"color": color},
        )
    figure.update_layout(barmode="group", height=120 + 44 * max((len(shares) for shares in found.values()), default=1))
    figure.update_xaxes(title="share of the figure's variation", range=[0, 1])
    figure.update_yaxes(autorange="reversed", automargin=True)
    return figure


def _dimension(key: str, searched: Range, values: Sequence[Any]) -> dict[str, Any]:
    label = key.rsplit(".", 1)[-1]
    if searched.kind == "choice":
        names = [str(value) for value in searched.values]
        # A value that a resumed sweep no longer searches still gets its own tick.
        names += sorted({str(value) for value in values} - set(names))
        ticks = list(range(len(names)))
        found = [names.index(str(value)) for value in values]
        return {"label": label, "values": found, "tickvals": ticks, "ticktext": names, "range": [0, max(1, ticks[-1])]}
    if searched.kind == "log":
        return _log_dimension(label, [float(value) for value in values], searched.values)
    ranged: dict[str, Any] = {"label": label, "values": list(values), "range": list(searched.values)}
    if searched.kind == "int":
        ranged["tickvals"] = axis([*values, *searched.values], "integer")["tickvals"]
    return ranged


def _log_dimension(label: str, values: Sequence[float], ends: Iterable[float] = ()) -> dict[str, Any]:
    logs = [math.log10(value) for value in values]
    low, high = min([*logs, *map(math.log10, ends)]), max([*logs, *map(math.log10, ends)])
    ticks = [low + (high - low) * part / 4 for part in range(5)]
    texts = [f"{10**tick:.2g}" for tick in ticks]
    spread = {} if low == high else {"range": [low, high]}
    return {"label": label, "values": logs, "tickvals": ticks, "ticktext": texts, **spread}

"""The plotly figures of a sweep's page: for a browser what `plots.py` draws for paper.

Figures of one grid are panels of their own, so that a page sets them in one column or in two. All panels of a section
share a legend, which the page draws (`page_legend.py`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from tokconv.evaluation.baselines.registry import BASELINES, PLOTS, Baseline, shown_in
from tokconv.sweep.judge.evidence import UNPROVEN, Evidence, judged_text
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.kinds import kind_fronts, readability
from tokconv.sweep.report.page_axes import set_axes
from tokconv.sweep.report.plots import (
    CHAMPION,
    CURVES,
    KINDS,
    LOWEST,
    STOPPED,
    TRIAL,
    better_title,
    floor_of,
    shown,
)
from tokconv.sweep.report.text import values_text, winning_baselines

SYMBOLS = {"s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left"}
SYMBOLS |= {"o": "circle", "P": "cross", "X": "x", ">": "triangle-right", "p": "pentagon", "*": "hexagram"}
SYMBOLS |= {"h": "hexagon", "d": "diamond-tall"}
"""Matplotlib's marker -> plotly's name for it."""
FVU, SWD = "val/fvu", "val/swd"
HEIGHT, PANEL_HEIGHT = 420, 320
Panels = list[tuple[Verdict, go.Figure]]
"""One figure per grid."""


def front_figure(sweep: SweepSnapshot, metric: str = FVU) -> go.Figure:
    """Return a figure against the compression ratio: all trials, baselines, champions with their intervals.

    Baselines that win nothing are hidden until their entry in the legend is clicked.

    Args:
        metric: fvu, or another one whose champions are drawn then.
    """
    figure = go.Figure()
    for state, (label, color, end) in CURVES.items():
        trials = [trial for trial in sweep.trials.values() if trial.state == state and metric in trial.figures]
        symbol = "x" if end else "circle-open" if state == "running" else "circle"
        _points(figure, trials, [trial.ratio for trial in trials], label, {"color": color, "symbol": symbol}, metric)
    visible = visible_baselines(sweep.verdicts)
    for entry in known_baselines(sweep.verdicts):
        known = [v for v in sweep.verdicts if metric in v.baselines.get(entry.name, {})]
        figure.add_scatter(
            x=[v.ratio for v in known],
            y=[shown(v.baselines[entry.name], metric) for v in known],
            name=entry.title,
            mode="lines+markers",
            line={"color": entry.color, "dash": "dot", "width": 1.5},
            marker={"symbol": SYMBOLS[entry.marker], "color": entry.color, "size": 8},
            hovertemplate=f"{entry.title}: %{{y:.4f}}<extra></extra>",
            visible=True if entry.name in visible else "legendonly",
        )
    _champions(figure, sweep.verdicts, y_metric=metric)
    set_axes(figure, x=None, y="log")
    ticked = ratio_ticks(sweep.verdicts)
    figure.update_xaxes(
        type="log",
        title="compression ratio (output grid)",
        tickvals=[v.ratio for v in ticked],
        ticktext=[f"{v.ratio:.3g}x<br>{v.grid} x {v.grid}" for v in ticked],
    )
    figure.update_yaxes(title=better_title(metric))
    return figure.update_layout(height=HEIGHT)


def likeness_panels(sweep: SweepSnapshot) -> Panels:
    """Return fvu against likeness: trials, front, baselines, champions, and the floor."""
    panels, likeness = [], sweep.verdicts[0].likeness
    for verdict in sweep.verdicts:
        figure = go.Figure()
        values = [shown(trial.figures, likeness) for trial in verdict.trials]
        _points(figure, verdict.trials, values, "complete", {"color": TRIAL, "symbol": "circle"})
        if verdict.front:
            figure.add_scatter(
                x=[shown(trial.figures, likeness) for trial in verdict.front],
                y=[shown(trial.figures, FVU) for trial in verdict.front],
                name="front",
                mode="lines",
                line={"color": TRIAL, "shape": "hv", "width": 1.5},
                hoverinfo="skip",
            )
        _baselines(figure, verdict, likeness)
        _champions(figure, [verdict], likeness)
        floor = floor_of(verdict, likeness)
        if floor is not None:
            figure.add_vline(x=max(floor, LOWEST), line={"color": STOPPED, "dash": "dash", "width": 1})
        panels.append((verdict, _finished(figure, likeness)))
    return panels


def kinds_panels(sweep: SweepSnapshot) -> Panels:
    """Return fvu against readability: the front of every kind over its trials, and baselines."""
    panels, metric = [], readability(sweep.verdicts)
    for verdict in sweep.verdicts:
        figure = go.Figure()
        _baselines(figure, verdict, metric, STOPPED)
        for (color, marker), found in zip(itertools.cycle(KINDS), kind_fronts(sweep, verdict), strict=False):
            style = {"color": color, "symbol": SYMBOLS[marker]}
            values = [shown(point.figures, metric) for point in found.points]
            _points(figure, found.points, values, found.kind, style)
            if found.front:
                figure.add_scatter(
                    x=[shown(point.figures, metric) for point in found.front],
                    y=[shown(point.figures, FVU) for point in found.front],
                    name=found.kind,
                    mode="lines+markers",
                    line={"color": color, "shape": "hv", "width": 1.5},
                    marker={**style, "size": 9},
                    hoverinfo="skip",
                )
        panels.append((verdict, _finished(figure, metric)))
    return panels


def title(verdict: Verdict) -> str:
    """Return the title of a panel or a picture: `6 x 6 (16x)`."""
    return f"{verdict.grid} x {verdict.grid} ({verdict.ratio:.3g}x)"


def ratio_ticks(verdicts: Sequence[Verdict]) -> list[Verdict]:
    """Return the grids that get a tick, without those whose labels would touch on a narrow screen."""
    room = math.log(verdicts[0].ratio / verdicts[-1].ratio) / 6
    ticked: list[Verdict] = []
    for verdict in verdicts:
        if not ticked or math.log(ticked[-1].ratio / verdict.ratio) >= room:
            ticked.append(verdict)
    return ticked


def known_baselines(verdicts: Sequence[Verdict]) -> list[Baseline]:
    """Return the baselines that any of these grids has, in the order of the registry."""
    return [entry for entry in BASELINES.values() if any(entry.name in verdict.baselines for verdict in verdicts)]


def visible_baselines(verdicts: Sequence[Verdict]) -> set[str]:
    """Return the baselines that are drawn from the start: those of every plot, and those that win."""
    won = (winning_baselines(verdict) for verdict in verdicts)
    return {entry.name for entry in shown_in(PLOTS)}.union(*won)


def _finished(figure: go.Figure, metric: str) -> go.Figure:
    """Return a panel of fvu against a figure with its axes."""
    set_axes(figure, x="log" if metric == SWD else "linear", y="log")
    figure.update_xaxes(title=better_title(metric))
    figure.update_yaxes(title=better_title(FVU))
    return figure.update_layout(height=PANEL_HEIGHT)


def _baselines(figure: go.Figure, verdict: Verdict, metric: str, color: str | None = None) -> None:
    """Draw baselines at a figure, in one colour or each in its own; those that win nothing are hidden at first."""
    visible = visible_baselines([verdict])
    for entry in known_baselines([verdict]):
        if {metric, FVU} <= verdict.baselines[entry.name].keys():
            figure.add_scatter(
                x=[shown(verdict.baselines[entry.name], metric)],
                y=[shown(verdict.baselines[entry.name], FVU)],
                name=entry.title,
                mode="markers",
                marker={"symbol": SYMBOLS[entry.marker], "color": color or entry.color, "size": 10},
                hovertemplate=f"{entry.title}: %{{x:.4g}}, %{{y:.4f}}<extra></extra>",
                visible=True if entry.name in visible else "legendonly",
            )


def _points(
    figure: go.Figure,
    trials: Sequence[TrialRecord],
    x: Sequence[float],
    name: str,
    style: dict[str, str],
    metric: str = FVU,
) -> None:
    if trials:
        figure.add_scatter(
            x=x,
            y=[shown(trial.figures, metric) for trial in trials],
            text=[_hover(trial) for trial in trials],
            name=name,
            mode="markers",
            marker={**style, "size": 6, "opacity": 0.7},
            hovertemplate="%{text}<extra></extra>",
        )


def _champions(
    figure: go.Figure, verdicts: Sequence[Verdict], x_metric: str | None = None, *, y_metric: str = FVU
) -> None:
    """Draw the best trials with their intervals: all purposes against a figure; against the ratio, the first at its fvu
    and those of another figure at that.

    A full star has won; an empty one is the best trial of a grid where a closed form is at least as good.
    """
    awards = [(v, award) for v in verdicts for award in (v.awards if x_metric else v.awards[:1])]
    if y_metric != FVU:
        awards = [(v, award) for v in verdicts for award in v.awards if award.criterion.figure == y_metric]
    for won, name, symbol in ((True, "champion", "star"), (False, "best trial, not proven", "star-open")):
        known = [
            (v, award.purpose.name, award.evidence)
            for v, award in awards
            if award.evidence is not None and (award.evidence.status != UNPROVEN) == won
        ]
        if not known:
            continue

        def interval(metric: str, found: Sequence[tuple[Verdict, str, Evidence]] = known) -> dict[str, Any]:
            widths = [evidence.half_widths.get(metric, 0.0) for *_, evidence in found]
            return {"type": "data", "array": widths, "color": CHAMPION}

        figure.add_scatter(
            x=[shown(evidence.figures, x_metric) if x_metric else v.ratio for v, _, evidence in known],
            y=[shown(evidence.figures, y_metric) for *_, evidence in known],
            error_y=interval(y_metric),
            error_x=interval(x_metric) if x_metric else None,
            text=[f"{purpose} at {v.grid} x {v.grid}<br>{evidence.summary}" for v, purpose, evidence in known],
            name=name,
            mode="markers",
            marker={"symbol": symbol, "size": 14, "color": CHAMPION},
            hovertemplate="%{text}<extra></extra>",
        )


def _hover(trial: TrialRecord) -> str:
    judged, values = judged_text(trial.figures), values_text(trial.values)
    return f"trial {trial.uid}, {trial.ratio:.3g}x<br>{judged}<br>{values}"

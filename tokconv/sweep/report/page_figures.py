"""The plotly figures of a sweep's page: for a browser what `plots.py` draws for paper."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from tokconv.evaluation.baselines.registry import PLOTS, shown_in
from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.evidence import judged_text
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.kinds import kind_fronts, readability
from tokconv.sweep.report.plots import (
    CHAMPION,
    CURVES,
    KINDS,
    LOWEST,
    STOPPED,
    TRIAL,
    axis_title,
    better_title,
    floor_of,
    shown,
)
from tokconv.sweep.report.text import values_text

SYMBOLS = {"s": "square", "D": "diamond", "^": "triangle-up", "v": "triangle-down", "<": "triangle-left"}
SYMBOLS |= {"o": "circle", "P": "cross", "X": "x"}
"""Matplotlib's marker -> plotly's name for it."""
FVU, SWD = "val/fvu", "val/swd"
LOG_TICKS = {
    "tickvals": [digit * 10.0**power for power in range(-6, 3) for digit in (1, 2, 5)],
    "ticktext": [f"{digit * 10.0**power:g}" for power in range(-6, 3) for digit in (1, 2, 5)],
}
"""Plotly's own log ticks between the powers of ten read 2 and 5, whatever the power."""
WITHOUT_POINT = ("window_pca",)
"""Baselines whose codes are so far from tokens that their points would squeeze all others together."""


def front_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return fvu against the compression ratio: all trials, lines of baselines, the champions with their intervals."""
    figure = go.Figure()
    for state, (label, color, end) in CURVES.items():
        trials = [trial for trial in sweep.trials.values() if trial.state == state and FVU in trial.figures]
        symbol = "x" if end else "circle-open" if state == "running" else "circle"
        _points(figure, trials, [trial.ratio for trial in trials], label, {"color": color, "symbol": symbol})
    for entry in shown_in(PLOTS):
        known = [v for v in sweep.verdicts if entry.name in v.baselines]
        figure.add_scatter(
            x=[v.ratio for v in known],
            y=[shown(v.baselines[entry.name], FVU) for v in known],
            name=entry.title,
            mode="lines+markers",
            line={"color": entry.color, "dash": "dot", "width": 1},
            marker={"symbol": SYMBOLS[entry.marker], "color": entry.color, "size": 8},
        )
    _champions(figure, sweep.verdicts)
    figure.update_xaxes(
        type="log",
        title=f"compression ratio ({FIGURES['compression_ratio'].meaning})",
        tickvals=[v.ratio for v in sweep.verdicts],
        ticktext=[f"{v.ratio:.3g}x<br>{v.grid} x {v.grid}" for v in sweep.verdicts],
    )
    figure.update_yaxes(type="log", title=axis_title(FVU), **LOG_TICKS)
    return figure


def fidelity_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return fvu against likeness, one panel per grid: trials, front, baselines, champion, and the floor."""
    figure, panels = _panels(sweep, height=320)
    likeness = sweep.verdicts[0].likeness
    for verdict, panel in panels:
        values = [shown(trial.figures, likeness) for trial in verdict.trials]
        _points(figure, verdict.trials, values, "complete", {"color": TRIAL, "symbol": "circle"}, **panel)
        figure.add_scatter(
            x=[shown(trial.figures, likeness) for trial in verdict.front],
            y=[shown(trial.figures, FVU) for trial in verdict.front],
            name="front",
            mode="lines",
            line={"color": TRIAL, "shape": "hv", "width": 1},
            hoverinfo="skip",
            legendgroup="front",
            **panel,
        )
        _baselines(figure, verdict, likeness, **panel)
        if verdict.evidence is not None:
            _champions(figure, [verdict], likeness, **panel)
        floor = floor_of(verdict, likeness)
        if floor is not None:
            line = {"color": STOPPED, "dash": "dash", "width": 1}
            figure.add_vline(x=max(floor, LOWEST), line=line, row=panel["row"], col=panel["col"])
    scale = {"type": "log", **LOG_TICKS} if likeness == SWD else {}
    figure.update_xaxes(title=axis_title(likeness), **scale)
    figure.update_yaxes(type="log", title=FIGURES[FVU].title, **LOG_TICKS)
    return figure


def kinds_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return fvu against readability, one panel per grid: the front of every kind over its trials, and baselines."""
    figure, panels = _panels(sweep, height=320)
    metric = readability(sweep.verdicts)
    for verdict, panel in panels:
        _baselines(figure, verdict, metric, STOPPED, **panel)
        for (color, marker), found in zip(itertools.cycle(KINDS), kind_fronts(sweep, verdict), strict=False):
            style = {"color": color, "symbol": SYMBOLS[marker]}
            values = [shown(point.figures, metric) for point in found.points]
            _points(figure, found.points, values, found.kind, style, **{**panel, "showlegend": False})
            front: list[tuple[float | None, float | None]] = [
                (shown(point.figures, metric), shown(point.figures, FVU)) for point in found.front
            ]
            # An empty front still has its entry in the legend: the first panel's stands for all of them.
            front = front or [(None, None)]
            figure.add_scatter(
                x=[x for x, _ in front],
                y=[y for _, y in front],
                name=found.kind,
                mode="lines+markers",
                line={"color": color, "shape": "hv", "width": 1.5},
                marker={**style, "size": 9},
                hoverinfo="skip",
                legendgroup=found.kind,
                **panel,
            )
    figure.update_xaxes(title=better_title(metric), **({"type": "log", **LOG_TICKS} if metric == SWD else {}))
    figure.update_yaxes(type="log", title=better_title(FVU), **LOG_TICKS)
    return figure


def curves_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return fvu by epoch, one panel per grid; all trials of one state are one line with gaps."""
    figure, panels = _panels(sweep, height=300)
    for verdict, panel in panels:
        for state, (label, color, _) in CURVES.items():
            own = [t for t in sweep.trials.values() if t.state == state and t.grid == verdict.grid and t.history]
            points = [point for trial in own for point in (*_curve(trial), (None, None, None))]
            if not points:
                continue
            figure.add_scatter(
                x=[epoch for epoch, _, _ in points],
                y=[value for _, value, _ in points],
                text=[uid for _, _, uid in points],
                name=label,
                mode="lines",
                opacity=0.7,
                line={"color": color, "width": 1},
                hovertemplate="trial %{text}, epoch %{x}: %{y:.4f}<extra></extra>",
                legendgroup=label,
                **panel,
            )
        if verdict.champion is not None:
            curve = _curve(verdict.champion)
            figure.add_scatter(
                x=[epoch for epoch, _, _ in curve],
                y=[value for _, value, _ in curve],
                name="champion",
                mode="lines+markers",
                line={"color": CHAMPION, "width": 2},
                legendgroup="champion",
                **panel,
            )
    figure.update_xaxes(title="epoch")
    figure.update_yaxes(type="log", title=FIGURES[FVU].title, **LOG_TICKS)
    return figure


def savings_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return the epochs of every grid's trials: those that ran, and those that early stopping saved."""
    figure = go.Figure()
    names, run, saved = [], [], []
    for verdict in sweep.verdicts:
        own = [trial for trial in sweep.trials.values() if trial.grid == verdict.grid]
        names.append(f"{verdict.grid} x {verdict.grid}")
        run.append(sum(trial.epochs_done for trial in own))
        saved.append(sum(sweep.epochs - trial.epochs_done for trial in own if trial.state == "pruned"))
    figure.add_bar(x=names, y=run, name="run", marker={"color": TRIAL})
    figure.add_bar(
        x=names, y=saved, name="saved by early stopping", marker={"color": STOPPED, "pattern": {"shape": "/"}}
    )
    figure.update_layout(barmode="stack", height=320)
    figure.update_yaxes(title="epochs")
    return figure


def title(verdict: Verdict) -> str:
    """Return the title of a panel or a picture: `6 x 6 (16x)`."""
    return f"{verdict.grid} x {verdict.grid} ({verdict.ratio:.3g}x)"


def _panels(sweep: SweepSnapshot, *, height: int) -> tuple[go.Figure, list[tuple[Verdict, dict[str, Any]]]]:
    """Return a figure with one panel per grid, and where each grid's traces go; the first panel fills the legend."""
    columns = min(2, len(sweep.verdicts))
    rows = math.ceil(len(sweep.verdicts) / columns)
    titles = [title(verdict) for verdict in sweep.verdicts]
    figure = make_subplots(rows, columns, subplot_titles=titles, vertical_spacing=0.16, horizontal_spacing=0.12)
    figure.update_layout(height=height * rows + 80)
    return figure, [
        (verdict, {"row": index // columns + 1, "col": index % columns + 1, "showlegend": index == 0})
        for index, verdict in enumerate(sweep.verdicts)
    ]


def _baselines(figure: go.Figure, verdict: Verdict, metric: str, color: str | None = None, **panel: Any) -> None:
    """Draw baselines at a figure, in one colour or each in its own."""
    left_out = WITHOUT_POINT if metric == SWD else ()
    for entry in shown_in(PLOTS):
        if metric in verdict.baselines.get(entry.name, {}) and entry.name not in left_out:
            figure.add_scatter(
                x=[shown(verdict.baselines[entry.name], metric)],
                y=[shown(verdict.baselines[entry.name], FVU)],
                name=entry.title,
                mode="markers",
                marker={"symbol": SYMBOLS[entry.marker], "color": color or entry.color, "size": 9},
                legendgroup=entry.title,
                **panel,
            )


def _points(
    figure: go.Figure, trials: Sequence[TrialRecord], x: Sequence[float], name: str, style: dict[str, str], **panel: Any
) -> None:
    if trials:
        figure.add_scatter(
            x=x,
            y=[shown(trial.figures, FVU) for trial in trials],
            text=[_hover(trial) for trial in trials],
            name=name,
            mode="markers",
            marker={**style, "size": 6, "opacity": 0.7},
            hovertemplate="%{text}<extra></extra>",
            legendgroup=name,
            **panel,
        )


def _champions(figure: go.Figure, verdicts: Sequence[Verdict], x_metric: str | None = None, **panel: Any) -> None:
    """Draw champions with their intervals: all purposes against a figure, the first against the compression ratio."""
    awards = [(v, award) for v in verdicts for award in (v.awards if x_metric else v.awards[:1])]
    known = [(v, award.purpose.name, award.evidence) for v, award in awards if award.evidence is not None]

    def interval(metric: str) -> dict[str, Any]:
        widths = [evidence.half_widths.get(metric, 0.0) for *_, evidence in known]
        return {"type": "data", "array": widths, "color": CHAMPION}

    figure.add_scatter(
        x=[shown(evidence.figures, x_metric) if x_metric else v.ratio for v, _, evidence in known],
        y=[shown(evidence.figures, FVU) for *_, evidence in known],
        error_y=interval(FVU),
        error_x=interval(x_metric) if x_metric else None,
        text=[f"{purpose} at {v.grid} x {v.grid}<br>{evidence.summary}" for v, purpose, evidence in known],
        name="champion (95 % interval)",
        mode="markers",
        marker={"symbol": "star", "size": 15, "color": CHAMPION, "line": {"width": 1, "color": "white"}},
        hovertemplate="%{text}<extra></extra>",
        legendgroup="champion",
        **panel,
    )


def _curve(trial: TrialRecord) -> list[tuple[float, float, str]]:
    return [(row["epoch"], shown(row, FVU), trial.uid) for row in trial.history if FVU in row]


def _hover(trial: TrialRecord) -> str:
    judged, values = judged_text(trial.figures), values_text(trial.values)
    return f"trial {trial.uid}, {trial.ratio:.3g}x<br>{judged}<br>{values}"

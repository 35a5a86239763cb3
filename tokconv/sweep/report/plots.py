"""The pictures of a sweep: the front of every grid, that of every kind, and the learning curves of every trial."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import chain, cycle
from typing import Any

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.ticker import FixedLocator, LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

from tokconv.evaluation.baselines.registry import BASELINES, PLOTS, Baseline
from tokconv.evaluation.baselines.registry import shown_in as baselines_in
from tokconv.evaluation.figure import SWEEP
from tokconv.evaluation.figures import FIGURES, JUDGED_ON
from tokconv.sweep.judge.evidence import Figures
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.kinds import kind_fronts, readability
from tokconv.sweep.report.text import winning_baselines

# By Okabe and Ito, which the colour-blind can tell apart; https://jfly.uni-koeln.de/color/
CHAMPION, TRIAL, STOPPED, FAILED = "#D55E00", "#56B4E9", "#999999", "#CC79A7"
CURVES = {
    "pruned": ("stopped early", STOPPED, "x"),
    "failed": ("failed", FAILED, "x"),
    "running": ("unfinished", STOPPED, ""),
    "complete": ("complete", TRIAL, ""),
}
"""State of a trial -> label, colour, mark at the end of its curve."""
KINDS = (("#0072B2", "o"), (CHAMPION, "s"), ("#009E73", "D"), ("#CC79A7", "^"), ("#E69F00", "v"), (TRIAL, "P"))
"""Colour and marker of each kind of compressor, in their order; they start again after the last."""
LOWEST = 1e-5
"""Lower figures are drawn here: with one output token per token everything is lossless, and 0 has no logarithm."""
LONGEST_TITLE = 60
HALO = [withStroke(linewidth=2.5, foreground="white")]
"""Keeps a label readable over a line."""
Point = tuple[float, float]


def pareto_figure(verdicts: Sequence[Verdict], trials: Iterable[TrialRecord], swd_limit: float | None = None) -> Figure:
    """Return the fronts. Left: fvu against the compression ratio. Right: fvu against likeness, one panel per grid.

    Args:
        trials: all trials of the search; those stopped early are crosses on the left.
        swd_limit: the published target on `val/swd`, to be drawn.
    """
    columns = min(2, len(verdicts))
    rows = math.ceil(len(verdicts) / columns)
    figure = Figure(figsize=(5.2 + 3.7 * columns, max(5.4, 0.9 + 2.9 * rows)), layout="constrained")
    cells = figure.add_gridspec(rows, 1 + columns, width_ratios=(1.35, *[1.0] * columns))
    _draw_ratios(figure.add_subplot(cells[:, 0]), verdicts, trials)
    for index, verdict in enumerate(verdicts):
        row, column = divmod(index, columns)
        _draw_front(figure.add_subplot(cells[row, 1 + column]), verdict, swd_limit)
    _legend(figure)
    return figure


def curves_figure(verdicts: Sequence[Verdict], trials: Iterable[TrialRecord]) -> Figure:
    """Return the judged figures of every trial by epoch, one row of panels per grid."""
    trials = [trial for trial in trials if trial.history]
    figure = Figure(figsize=(10.0, 0.9 + 2.5 * len(verdicts)), layout="constrained")
    panels = figure.subplots(len(verdicts), len(JUDGED_ON), sharex=True, squeeze=False)
    for verdict, row in zip(verdicts, panels, strict=True):
        of_grid = [trial for trial in trials if trial.grid == verdict.grid]
        for axes, metric in zip(row, JUDGED_ON, strict=True):
            _draw_curves(axes, verdict, of_grid, metric)
            axes.set_ylabel(FIGURES[metric].title)
            axes.set_title(_title(verdict), fontsize="medium")
            axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True, min_n_ticks=1))
        for entry in _drawn([verdict], SWEEP):
            if entry.name in verdict.baselines:
                height = shown(verdict.baselines[entry.name], "val/fvu")
                row[0].axhline(height, color=entry.color, linewidth=1.2, label=entry.title, zorder=1)
        _floor_line(row[1].axhline, verdict, JUDGED_ON[1])
        for axes in row:
            _log_scale(axes, axes.yaxis)
    for axes in panels[-1]:
        axes.set_xlabel("epoch")
    _legend(figure)
    return figure


def kinds_figure(sweep: SweepSnapshot) -> Figure:
    """Return fvu against readability: the front of every kind of compressor over its trials, one panel per grid."""
    columns, metric = min(2, len(sweep.verdicts)), readability(sweep.verdicts)
    rows = math.ceil(len(sweep.verdicts) / columns)
    figure = Figure(figsize=(max(6.0, 4.6 * columns), 0.9 + 3.2 * rows), layout="constrained")
    for index, verdict in enumerate(sweep.verdicts):
        axes = figure.add_subplot(rows, columns, index + 1)
        for entry in baselines_in(PLOTS):
            if metric in verdict.baselines.get(entry.name, {}):
                point = _point(metric, verdict.baselines[entry.name])
                _plot(axes, [point], **_marks(STOPPED, entry.marker, 6), label=entry.title)
        for (color, marker), found in zip(cycle(KINDS), kind_fronts(sweep, verdict), strict=False):
            _plot(axes, [_point(metric, one.figures) for one in found.points], **_marks(color, marker, 4, alpha=0.35))
            style = {"drawstyle": "steps-post", "color": color, "marker": marker, "markersize": 6, "linewidth": 1.4}
            _plot(axes, [_point(metric, one.figures) for one in found.front], **style, label=found.kind)
        axes.set(xlabel=better_title(metric), ylabel=better_title("val/fvu"))
        axes.set_title(_title(verdict), fontsize="medium")
        if metric == "val/swd":
            _log_scale(axes, axes.xaxis)
        _log_scale(axes, axes.yaxis)
    _legend(figure)
    return figure


def _drawn(verdicts: Sequence[Verdict], place: str) -> list[Baseline]:
    """Return the baselines that a picture shows: those of a place, and those that win at any of these grids."""
    won = {name for verdict in verdicts for name in winning_baselines(verdict)}
    return [entry for entry in BASELINES.values() if place in entry.places or entry.name in won]


def _draw_ratios(axes: Axes, verdicts: Sequence[Verdict], trials: Iterable[TrialRecord]) -> None:
    stopped = [trial for trial in trials if trial.state == "pruned" and "val/fvu" in trial.figures]
    # Next to the column of the complete trials, which they would hide.
    points = [(trial.ratio * 1.05, shown(trial.figures, "val/fvu")) for trial in stopped]
    _plot(axes, points, **_marks(STOPPED, "x", 4, alpha=0.6), label="stopped early")
    complete = chain.from_iterable(verdict.trials for verdict in verdicts)
    points = [(trial.ratio, shown(trial.figures, "val/fvu")) for trial in complete]
    _plot(axes, points, **_marks(TRIAL, "o", 5, alpha=0.5), label="complete trial")
    for entry in _drawn(verdicts, SWEEP):
        known = [(v.ratio, shown(v.baselines[entry.name], "val/fvu")) for v in verdicts if entry.name in v.baselines]
        _plot(axes, known, color=entry.color, marker=entry.marker, markersize=5, linewidth=1.2, label=entry.title)
    won = [(v.ratio, shown(v.champion.figures, "val/fvu")) for v in verdicts if v.champion]
    _plot(axes, won, color=CHAMPION, linewidth=1.5)
    for verdict in verdicts:
        _star(axes, verdict, verdict.ratio)
    axes.set(xscale="log", xlabel="compression ratio (output grid)", ylabel=axis_title("val/fvu"))
    axes.set_title("Error at every ratio", fontsize="medium")
    _ratio_ticks(axes, verdicts)
    _log_scale(axes, axes.yaxis)


def _draw_front(axes: Axes, verdict: Verdict, swd_limit: float | None) -> None:
    points = [_point(verdict.likeness, trial.figures) for trial in verdict.trials]
    _plot(axes, points, **_marks(TRIAL, "o", 5, alpha=0.5), label="complete trial")
    # Along a front likeness rises as fvu falls. It dominates what lies above and to the right of its steps.
    front = [_point(verdict.likeness, trial.figures) for trial in verdict.front]
    _plot(axes, front, drawstyle="steps-post", color="black", linewidth=1, label="front")
    for entry in _drawn([verdict], PLOTS):
        if verdict.likeness in verdict.baselines.get(entry.name, {}):
            point = _point(verdict.likeness, verdict.baselines[entry.name])
            _plot(axes, [point], **_marks(entry.color, entry.marker, 6), label=entry.title)
            # The front passes above matched window PCA, so its name stands below. The legend names the others.
            if PLOTS in entry.places:
                _name(axes, point, entry.title, entry.color, below=entry is BASELINES["matched_window_pca"])
    _star(axes, verdict, None)
    if verdict.champion is None:
        axes.set_title(
            "no champion" if verdict.trials else "no complete trial", loc="right", fontsize="small", color=STOPPED
        )
    if swd_limit is not None and swd_limit > 0 and verdict.likeness == "val/swd":
        axes.axvline(swd_limit, color="black", linestyle="--", linewidth=1, zorder=0.5, label="published swd target")
    _floor_line(axes.axvline, verdict, verdict.likeness)
    axes.set_xlabel(axis_title(verdict.likeness), fontsize="small")
    axes.set_ylabel(axis_title("val/fvu"), fontsize="small")
    axes.set_title(_title(verdict), loc="center" if verdict.champion else "left", fontsize="medium")
    axes.margins(x=0.2, y=0.16)
    if verdict.likeness == "val/swd":
        _log_scale(axes, axes.xaxis)
    _log_scale(axes, axes.yaxis)


def _draw_curves(axes: Axes, verdict: Verdict, trials: Sequence[TrialRecord], metric: str) -> None:
    for state, (label, color, end) in CURVES.items():
        curves = [_curve(trial, metric) for trial in trials if trial.state == state]
        # One line with gaps instead of one line per trial: a thousand trials are drawn as fast as one.
        path = [point for curve in curves for point in (*curve, (math.nan, math.nan))]
        width = 1.0 if state == "complete" else 0.8
        _plot(axes, path, color=color, alpha=0.65, linewidth=width, marker=".", markersize=3, label=label)
        if end:
            _plot(axes, [curve[-1] for curve in curves if curve], **_marks(color, end, 6))
    if verdict.champion is not None:
        style = {"color": CHAMPION, "linewidth": 1.8, "marker": "o", "markersize": 4}
        _plot(axes, _curve(verdict.champion, metric), **style, **_winner(verdict))


def _plot(axes: Axes, points: Sequence[Point], **style: Any) -> None:
    """Draw points, if there are any: none would still leave an entry in the legend."""
    if points:
        axes.plot([x for x, _ in points], [y for _, y in points], **style)


def _star(axes: Axes, verdict: Verdict, ratio: float | None) -> None:
    """Draw the champions of all purposes at their likeness, or the first at a ratio."""
    style = _marks(CHAMPION, "*", 14) | _winner(verdict) | {"zorder": 5}
    won = [award.champion for award in verdict.awards if award.champion is not None]
    points = [_point(verdict.likeness, trial.figures) for trial in won]
    _plot(axes, points if ratio is None else [(ratio, fvu) for _, fvu in points[:1]], **style)


def _winner(verdict: Verdict) -> dict[str, Any]:
    """Return the style of the best trials: filled if the first of them has won, else hollow."""
    if verdict.first.finding:
        return {"markerfacecolor": "white", "label": "best trial, not proven"}
    return {"markerfacecolor": CHAMPION, "label": "champion"}


def _name(axes: Axes, point: Point, label: str, color: str, *, below: bool) -> None:
    """Write a label at a baseline, over the vertical lines and under everything else."""
    offset = {"xytext": (0, -14 if below else 7), "textcoords": "offset points", "ha": "center"}
    axes.annotate(label, point, **offset, fontsize="small", color=color, zorder=1, path_effects=HALO)  # type: ignore[arg-type]


def _floor_line(line: Callable[..., object], verdict: Verdict, metric: str) -> None:
    floor, label = floor_of(verdict, metric), f"{FIGURES[metric].title} floor"
    if floor is not None:
        line(max(floor, LOWEST), color="black", linestyle=":", linewidth=1, zorder=0.5, label=label)


def _marks(color: str, marker: str, size: float, alpha: float = 1.0) -> dict[str, Any]:
    edge = color if marker in ("x", "*") else "none"
    style = {"color": color, "marker": marker, "markersize": size, "markeredgecolor": edge}
    return {**style, "linestyle": "none", "alpha": alpha}


def _curve(trial: TrialRecord, metric: str) -> list[Point]:
    return [(row["epoch"], shown(row, metric)) for row in trial.history if metric in row]


def _point(metric: str, figures: Figures) -> Point:
    return shown(figures, metric), shown(figures, "val/fvu")


def shown(figures: Figures, metric: str) -> float:
    """Return a figure as a log axis can show it."""
    return max(figures[metric], LOWEST)


def floor_of(verdict: Verdict, metric: str) -> float | None:
    """Return the floor of a figure, which every trial and every baseline of a grid shares; None if none has it."""
    known, name = chain((trial.figures for trial in verdict.trials), verdict.baselines.values()), FIGURES[metric].floor
    return next((figures[name] for figures in known if name in figures), None)


def axis_title(metric: str) -> str:
    """Return a figure's title with the first clause of its meaning, if it fits an axis."""
    title = FIGURES[metric].title
    full = f"{title} ({FIGURES[metric].meaning.partition(':')[0]})"
    return full if len(full) <= LONGEST_TITLE else title


def better_title(metric: str) -> str:
    """Return a figure's title with its good direction."""
    return f"{FIGURES[metric].title} ({'lower' if FIGURES[metric].lower_is_better else 'higher'} is better)"


def _title(verdict: Verdict) -> str:
    return f"{verdict.name}: {verdict.grid**2} tokens, {verdict.ratio:.3g}x"


def _ratio_ticks(axes: Axes, verdicts: Sequence[Verdict]) -> None:
    """Set one tick per grid, without those whose labels would touch."""
    ratios = [verdict.ratio for verdict in verdicts]
    room = math.log(max(ratios) / min(ratios)) / 9
    ticked: list[Verdict] = []
    for verdict in verdicts:
        if not ticked or math.log(ticked[-1].ratio / verdict.ratio) >= room:
            ticked.append(verdict)
    axes.set_xlim(min(ratios) / 1.2, max(ratios) * 1.25)
    axes.set_xticks([v.ratio for v in ticked], [f"{v.ratio:.3g}x\n({v.name})" for v in ticked])
    axes.xaxis.set_minor_locator(NullLocator())


def _log_scale(axes: Axes, axis: Axis) -> None:
    """Set a log scale with plain numbers: at 1, 2 and 5 if it spans much, at more of them if it spans little."""
    is_x = axis is axes.xaxis
    (axes.set_xscale if is_x else axes.set_yscale)("log")
    low, high = axes.get_xlim() if is_x else axes.get_ylim()
    span = high / low
    if span > 1.6:
        subs = (1, 2, 5) if span > 6 else (1, 1.5, 2, 3, 4, 6, 8)
        axis.set_major_locator(LogLocator(subs=subs if span < 100 else (1,), numticks=12))
    else:
        axis.set_major_locator(FixedLocator(list(MaxNLocator(nbins=4).tick_values(low, high))))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())
    axes.grid(visible=True, color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)


def _legend(figure: Figure) -> None:
    """Draw one legend below all panels, with each label once."""
    found: dict[str, Artist] = {}
    for axes in figure.axes:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    columns = int(figure.get_figwidth() / 1.9)
    figure.legend(found.values(), found, loc="outside lower center", ncols=columns, frameon=False)

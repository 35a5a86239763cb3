"""The rate-distortion plot of the baselines: error against ratio, and error against distance from real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import import_extra
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.models.windows import compression_ratio
from tokconv.system.files import atomic_path

Figures = Mapping[str, float]
LOWEST = 1e-5
"""Lower figures are drawn here: if no token is saved every figure of error is 0, which has no logarithm."""
FVU = "fvu (share of variance lost)"


def draw_rate_distortion(figures: Mapping[int, Mapping[str, Figures]], token_grid: int, out: Path) -> Path:
    """Write a PNG. Left: fvu against the compression ratio. Right: fvu against swd, large marks for few tokens, with
    the distance of real tokens from each other as dotted lines.

    Args:
        figures: output grid -> baseline -> figures.
        token_grid: G.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    grids = sorted(figures)
    ratios = {grid: compression_ratio(token_grid, grid) for grid in grids}
    for baseline in BASELINES.values():
        rows = {grid: figures[grid][baseline.name] for grid in grids if baseline.name in figures[grid]}
        fvu = [_drawn(row, "val/fvu") for row in rows.values()]
        swd = [_drawn(row, "val/swd") for row in rows.values()]
        style = {"color": baseline.color, "linestyle": "--" if baseline.has_side_information else "-"}
        # The matched one has window PCA's error: a hollow mark around it.
        hollow = {"markerfacecolor": "none", "markersize": 11} if baseline.name == "matched_window_pca" else {}
        marks = {"marker": baseline.marker, "markersize": 6, "linewidth": 1.3, "label": baseline.label} | hollow
        left.plot([ratios[grid] for grid in rows], fvu, **style, **marks)
        right.plot(swd, fvu, linewidth=0.8, **style)
        sizes = [30 + 130 * (1 - grids.index(grid) / max(1, len(grids) - 1)) for grid in rows]
        marks = {"color": baseline.color, "marker": baseline.marker, "edgecolors": "white", "linewidths": 0.6}
        right.scatter(swd, fvu, s=sizes, zorder=3, **marks)
    for grid in grids:
        floor = _drawn(next(iter(figures[grid].values())), "val/swd_floor")
        right.axvline(floor, color="black", linestyle=":", linewidth=0.8, zorder=0.5)
    left.set(xlabel="compression ratio (output grid)", ylabel=FVU)
    right.set(xlabel="swd to real tokens (dotted: of real tokens)", ylabel=FVU)
    left.set_title("Error at every ratio (dashed: needs a map next to its tokens)", fontsize="medium")
    largest, smallest = f"{grids[0]}x{grids[0]}", f"{grids[-1]}x{grids[-1]}"
    right.set_title(f"Error against token-likeness, {largest} (large) to {smallest} (small)", fontsize="medium")
    for axes in (left, right):
        _log_scales(axes)
    left.set_xticks(list(ratios.values()), [f"{ratio:.3g}x\n({grid}x{grid})" for grid, ratio in ratios.items()])
    left.set_xticks([], minor=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out


def _drawn(figures: Figures, name: str) -> float:
    return max(figures[name], LOWEST)


def _log_scales(axes: Any) -> None:
    """Use log axes with plain numbers at 1, 2 and 5, without which an axis of less than two decades is unreadable."""
    ticker = import_extra("matplotlib.ticker", "sweep")
    for axis, set_scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
        set_scale("log")
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
        axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
        axis.set_minor_locator(ticker.NullLocator())
    axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    axes.set_axisbelow(True)

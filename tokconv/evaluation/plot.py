"""The rate-distortion plot of the baselines: error against ratio, and error against distance from real tokens."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import import_extra
from tokconv.system.files import atomic_path

Figures = Mapping[str, float]

# Okabe and Ito's colours, which the colour-blind can tell apart; https://jfly.uni-koeln.de/color/
STYLES = {
    "pooling": ("#0072B2", "s"),
    "max_norm": ("#999999", "v"),
    "bilinear": ("#56B4E9", "o"),
    "pixel_shuffle": ("#E69F00", "P"),
    "tome": ("#D55E00", "X"),
    "prumerge": ("#8B5A2B", "<"),
    "window_pca": ("#009E73", "D"),
    "matched_window_pca": ("#CC79A7", "^"),
}
"""Baseline -> colour, marker."""
LOWEST = 1e-5
"""Figures below it are drawn there: at one output token for each token everything is lossless, and 0 has no log."""


def draw_rate_distortion(
    figures: Mapping[int, Mapping[str, Figures]], titles: Mapping[str, str], token_grid: int, out: Path
) -> Path:
    """Write a PNG. Left: fvu against the compression ratio. Right: fvu against swd, large marks for few tokens, with
    the distance of real tokens from each other as dotted lines.

    Args:
        figures: grid -> baseline -> figures.
        titles: baseline -> label; dashed lines for those whose label ends in an asterisk.
        token_grid: G.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    grids = sorted(figures)
    ratios = {grid: token_grid**2 / grid**2 for grid in grids}
    for name, (color, marker) in STYLES.items():
        rows = [(grid, figures[grid][name]) for grid in grids if name in figures[grid]]
        dashes = "--" if titles[name].endswith("*") else "-"
        style = {"color": color, "marker": marker, "linewidth": 1.3, "linestyle": dashes, "label": titles[name]}
        fvu = [_shown(row, "val/fvu") for _, row in rows]
        # The matched one has window PCA's error: a hollow mark around it.
        hollow = {"markerfacecolor": "none", "markersize": 11} if name == "matched_window_pca" else {}
        left.plot([ratios[grid] for grid, _ in rows], fvu, **style | {"markersize": 6} | hollow)
        swd = [_shown(row, "val/swd") for _, row in rows]
        right.plot(swd, fvu, **style | {"marker": "", "linewidth": 0.8})
        sizes = [30 + 130 * (1 - grids.index(grid) / max(1, len(grids) - 1)) for grid, _ in rows]
        right.scatter(swd, fvu, s=sizes, color=color, marker=marker, zorder=3, edgecolors="white", linewidths=0.6)
    for grid in grids:
        floor = _shown(next(iter(figures[grid].values())), "val/swd_floor")
        right.axvline(floor, color="black", linestyle=":", linewidth=0.8, zorder=0.5)
    left.set(xlabel="compression ratio (output grid)", ylabel="fvu (share of variance lost)")
    right.set(xlabel="swd to real tokens (dotted: of real tokens)", ylabel="fvu (share of variance lost)")
    left.set_title("Error at every ratio (dashed: needs a map beside its tokens)", fontsize="medium")
    largest, smallest = f"{grids[0]}x{grids[0]}", f"{grids[-1]}x{grids[-1]}"
    right.set_title(f"Error against token-likeness, {largest} (large) to {smallest} (small)", fontsize="medium")
    for axes in (left, right):
        for axis, scale in ((axes.xaxis, axes.set_xscale), (axes.yaxis, axes.set_yscale)):
            scale("log")
            _plain_ticks(axis)
        axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)
        axes.set_axisbelow(True)
    left.set_xticks(list(ratios.values()), [f"{ratio:.3g}x\n({grid}x{grid})" for grid, ratio in ratios.items()])
    left.set_xticks([], minor=True)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out


def _shown(figures: Figures, name: str) -> float:
    return max(figures[name], LOWEST)


def _plain_ticks(axis: Any) -> None:
    """Plain numbers at 1, 2 and 5, which a log axis of less than two decades needs to be readable."""
    ticker = import_extra("matplotlib.ticker", "sweep")
    axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=20))
    axis.set_major_formatter(ticker.StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(ticker.NullLocator())

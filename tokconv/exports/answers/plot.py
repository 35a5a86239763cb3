"""The plot of a run: answers kept, and divergence, against the ratio; one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokconv.errors import import_extra
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.exports.answers.figures import ALL, Figures
from tokconv.system.files import atomic_path

COLORS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628")
"""Of exported compressors, in the order in which they are named."""
WIDTH = 12.5
"""Of the plot, in inches."""
LOWEST = 1e-6
"""Smaller divergences are drawn here: 0 has no logarithm."""


def draw_answers(figures: Sequence[Figures], out: Path) -> Path:
    """Write a PNG with a row of two panels per task. Left: answers kept, or without exact answers the agreement with
    those from all tokens. Right: the divergence.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    tasks: list[str] = list(figures[0]["tasks"])
    size = (WIDTH, 1.0 + 4.6 * len(tasks))
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=size, layout="constrained")
    panels = figure.subplots(len(tasks), 2, squeeze=False)
    for task, row in zip(tasks, panels, strict=True):
        _draw_task(figures, task, *row)
    handles, labels = panels[0, 0].get_legend_handles_labels()
    # In inches, of the longest label with its line.
    column = 0.7 + 0.08 * max(map(len, labels), default=0)
    figure.legend(handles, labels, loc="outside lower center", ncols=max(1, int(WIDTH / column)), frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out


def _draw_task(figures: Sequence[Figures], task: str, left: Any, right: Any) -> None:
    kept = "agreement" if figures[0]["tasks"][task]["kept"] is None else "kept"
    rows = [method for method in figures if method["series"] != ALL]
    series = list(dict.fromkeys(method["series"] for method in rows))
    exported = [name for name in series if name not in BASELINES]
    for name in sorted(series, key=lambda name: name in exported):
        own = sorted((method for method in rows if method["series"] == name), key=lambda method: float(method["ratio"]))
        style, ratios = _style(name, exported), [method["ratio"] for method in own]
        left.plot(ratios, [100 * method["tasks"][task][kept] for method in own], **style)
        right.plot(ratios, [max(LOWEST, method["tasks"][task]["kl"]) for method in own], **style)
    left.axhline(100, color="black", linestyle=":", linewidth=0.8)
    left.set(title=task, ylabel="answers kept, %" if kept == "kept" else "same answers as from all tokens, %")
    right.set(title=task, ylabel="KL of the next token from all tokens, nats", yscale="log")
    ticks = {method["ratio"]: f"{method['ratio']:.3g}x\n({method['grid']}x{method['grid']})" for method in rows}
    for axes in (left, right):
        axes.set(xlabel="compression ratio (grid)", xscale="log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)


def _style(name: str, exported: Sequence[str]) -> dict[str, Any]:
    if name in BASELINES:
        entry = BASELINES[name]
        return {"color": entry.color, "marker": entry.marker, "markersize": 5, "linewidth": 1.0, "label": entry.label}
    color = COLORS[exported.index(name) % len(COLORS)]
    return {"color": color, "marker": "o", "markersize": 7, "linewidth": 2.2, "label": name}

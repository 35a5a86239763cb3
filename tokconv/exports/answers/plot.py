"""The plot of a run: answers kept, and divergence, against the ratio; one line per method."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tokconv.errors import import_extra
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.exports.answers.figures import Figures, mean_of
from tokconv.exports.answers.methods import ALL, COLORS
from tokconv.system.files import atomic_path

LOWEST = 1e-6
"""Smaller divergences are drawn here: 0 has no logarithm."""


def draw_answers(figures: Sequence[Figures], out: Path) -> Path:
    """Write a PNG. Left: answers kept, the mean over tasks with exact answers; agreement with the answers from all
    tokens if there are none. Right: the mean divergence over all tasks.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=(12.5, 5.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    kept = "kept" if mean_of(figures[0], "kept") is not None else "agreement"
    rows = [method for method in figures if method["series"] != ALL]
    series = list(dict.fromkeys(method["series"] for method in rows))
    exported = [name for name in series if name not in BASELINES]
    for name in sorted(series, key=lambda name: name in exported):
        own = sorted((method for method in rows if method["series"] == name), key=lambda method: float(method["ratio"]))
        style = _style(name, exported)
        ratios = [method["ratio"] for method in own]
        left.plot(ratios, [100 * (mean_of(method, kept) or 0.0) for method in own], **style)
        right.plot(ratios, [max(LOWEST, mean_of(method, "kl") or 0.0) for method in own], **style)
    left.axhline(100, color="black", linestyle=":", linewidth=0.8)
    left.set(ylabel="answers kept, %" if kept == "kept" else "agreement with the answers from all tokens, %")
    right.set(ylabel="KL of the next token from all tokens, nats", yscale="log")
    ticks = {method["ratio"]: f"{method['ratio']:.3g}x\n({method['grid']}x{method['grid']})" for method in rows}
    for axes in (left, right):
        axes.set(xlabel="compression ratio (grid)", xscale="log")
        axes.set_xticks(list(ticks), list(ticks.values()))
        axes.set_xticks([], minor=True)
        axes.grid(visible=True, which="major", color="0.9", linewidth=0.6)
    handles, labels = left.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=min(8, max(1, len(labels))), frameon=False)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return out


def _style(name: str, exported: Sequence[str]) -> dict[str, Any]:
    if name in BASELINES:
        entry = BASELINES[name]
        return {"color": entry.color, "marker": entry.marker, "markersize": 5, "linewidth": 1.0, "label": entry.label}
    color = COLORS[exported.index(name) % len(COLORS)]
    return {"color": color, "marker": "o", "markersize": 7, "linewidth": 2.2, "label": name}

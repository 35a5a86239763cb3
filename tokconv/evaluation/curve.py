"""The learning curve of a run: a table of every epoch, and a plot of it beside the closed forms."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from tokconv.errors import MissingExtraError, import_extra
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.figures import FIGURES, VLM_KL
from tokconv.system.files import atomic_path, write_text

CSV, PNG = "curve.csv", "curve.png"
DRAWN = (VLM_KL, "val/fvu", "val/swd")
"""Those that every epoch has are drawn: the first one only where a vision-language model taught."""


def write_curve(
    history: Sequence[Mapping[str, float]], baselines: Mapping[str, Mapping[str, float]], folder: Path
) -> list[Path]:
    """Write curve.csv, one row per epoch, and curve.png if matplotlib is installed; return what was written.

    Args:
        history: the figures of every epoch, the start first.
        baselines: name -> figures at the same grid; those that are known.
    """
    columns = list(dict.fromkeys(name for row in history for name in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(history)
    write_text(folder / CSV, text.getvalue())
    try:
        return [folder / CSV, _draw(history, baselines, folder / PNG)]
    except MissingExtraError:
        return [folder / CSV]


def _draw(history: Sequence[Mapping[str, float]], baselines: Mapping[str, Mapping[str, float]], path: Path) -> Path:
    drawn = [name for name in DRAWN if all(name in row for row in history)]
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=(5 * len(drawn), 4.2), layout="constrained")
    ticker = import_extra("matplotlib.ticker", "sweep")
    epochs = [row["epoch"] for row in history]
    for axes, name in zip(figure.subplots(1, len(drawn)), drawn, strict=True):
        entry = FIGURES[name]
        axes.plot(epochs, [row[name] for row in history], color="black", marker="o", markersize=4, label="this run")
        for baseline, figures in baselines.items():
            if name in figures and baseline in BASELINES:
                shown = BASELINES[baseline]
                axes.axhline(figures[name], color=shown.color, linestyle="--", linewidth=1, label=shown.title)
        if entry.floor in history[-1]:
            axes.axhline(history[-1][entry.floor], color="grey", linestyle=":", linewidth=1, label="real tokens")
        axes.set(xlabel="epoch", ylabel=entry.title, yscale="log")
        axes.xaxis.set_major_locator(ticker.MaxNLocator(integer=True))
        axes.set_title(f"{entry.title}: {'lower' if entry.lower_is_better else 'higher'} is better", fontsize="medium")
        # Not the best place, whose search takes long and warns on a busy machine.
        axes.legend(loc="center right", framealpha=0.8, edgecolor="none", fontsize="small")
    with atomic_path(path) as temporary:
        figure.savefig(temporary, format="png", dpi=120)
    return path

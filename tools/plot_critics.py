"""Draw what critics buy, docs/critics.png, from the arms `critic/*`, `steps/*` and `front/none` of tools/study.py.

python tools/study.py run --out runs/study --arms 'critic/*'     # likewise 'steps/*' and 'front/none'
python tools/plot_critics.py --study runs/study --store runs/stores/digits-digits-tower-... --out docs/critics.png
"""

from __future__ import annotations

import argparse
import json
import statistics
from collections import defaultdict
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.figures import FIGURES
from tokconv.store.reader import TokenStore
from tokconv.sweep.judge.evidence import half_width

GRID = 6
FVU, AUC, KEPT = "val/fvu", "val/auc_token", "val/reader_kept"
CURVES = {
    "wgan_gp": "WGAN-GP",
    "logistic": "logistic, R1 + R2",
    "hinge": "hinge, spectral norm",
    "swd": "sliced Wasserstein",
}
SHOWN = ("matched_window_pca", "own_factorisation", "pooling", "uniform", "max_norm", "downsampled", "tome")
"""Baselines that are drawn."""
TICKS = (0.02, 0.05, 0.1, 0.2)
RECIPE = f"digits/plug-in/{GRID:02d}"
Rows = list[dict[str, float]]


def read(study: Path) -> dict[str, Rows]:
    """Return arm -> the figures of its seeds."""
    found: dict[str, Rows] = defaultdict(list)
    for path in sorted(study.rglob("figures.json")):
        found[str(path.parent.parent.relative_to(study))].append(json.loads(path.read_text(encoding="utf-8")))
    return found


def interval(rows: Rows, name: str) -> tuple[float, float]:
    """Return mean and half of the 95 % interval over seeds; half of 0 with fewer than three seeds."""
    values = [row[name] for row in rows]
    return statistics.mean(values), half_width(values) if len(values) > 2 else 0.0


def draw_front(axes: Axes, arms: dict[str, Rows], baselines: dict[str, dict[str, float]], figure: str) -> None:
    """Draw fvu against a figure: one curve per loss over its weights, baselines as points."""
    for kind, label in CURVES.items():
        weights = sorted((float(name.rpartition("/")[2]), name) for name in arms if name.startswith(f"critic/{kind}/"))
        if not weights:
            continue
        rows = [arms["front/none"], *(arms[name] for _, name in weights)]
        (xs, half_xs), (ys, half_ys) = (
            zip(*(interval(row, name) for row in rows), strict=True) for name in (FVU, figure)
        )
        axes.errorbar(
            xs,
            ys,
            xerr=half_xs,
            yerr=half_ys,
            marker="o",
            markersize=4,
            capsize=2,
            label=label,
        )
    if recipe := arms.get(RECIPE):
        (x, half_x), (y, half_y) = interval(recipe, FVU), interval(recipe, figure)
        label = "logistic, default networks, 15 epochs"
        axes.errorbar(x, y, xerr=half_x, yerr=half_y, marker="*", markersize=11, color="tab:orange", label=label)
    for name in SHOWN:
        if name in baselines:
            point = baselines[name]
            axes.plot(point[FVU], point[figure], "k+", markersize=7)
            axes.annotate(
                BASELINES[name].label, (point[FVU], point[figure]), (4, 3), textcoords="offset points", fontsize=7
            )
    axes.set(xscale="log", xlabel="fvu", ylabel=FIGURES[figure].title, xlim=(0.018, 0.45))
    axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    axes.set_xticks([], minor=True)


def draw_steps(axes: Axes, arms: dict[str, Rows]) -> None:
    """Draw the AUC of WGAN-GP against the weight of its penalty, one curve per number of critic steps."""
    curves: dict[int, list[tuple[float, Rows]]] = defaultdict(list)
    for name, rows in arms.items():
        if name.startswith("steps/"):
            _, n_critic, lambda_gp = name.split("/")
            curves[int(n_critic)].append((float(lambda_gp), rows))
    for steps, points in sorted(curves.items()):
        points.sort(key=lambda point: point[0])
        values = [interval(rows, AUC) for _, rows in points]
        axes.errorbar(
            [penalty for penalty, _ in points],
            [mean for mean, _ in values],
            yerr=[half for _, half in values],
            marker="o",
            markersize=4,
            capsize=2,
            label=f"n_critic = {steps}",
        )
    axes.set(xscale="log", xlabel="lambda_gp", ylabel=FIGURES[AUC].title, title="WGAN-GP, weight 1")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, default=Path("runs/study"))
    parser.add_argument("--store", type=Path, required=True)
    parser.add_argument("--out", type=Path, default=Path("docs/critics.png"))
    args = parser.parse_args()
    arms, baselines = read(args.study), baseline_figures(TokenStore.open(args.store), GRID)
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    draw_front(left, arms, baselines, AUC)
    draw_front(middle, arms, baselines, KEPT)
    draw_steps(right, arms)
    for axes in (left, middle, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    left.set(title="lower left is better", ylim=(0.45, 1.02))
    middle.set(title="upper left is better")
    left.legend(fontsize=8)
    right.legend(fontsize=8)
    figure.savefig(args.out, dpi=120)
    print(args.out)


if __name__ == "__main__":
    main()

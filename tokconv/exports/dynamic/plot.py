"""The plot of dynamic compression: mean tokens per image against fvu."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from tokconv.errors import import_extra
from tokconv.exports.dynamic.compare import Saving, mixed_tokens

# Colours by Okabe and Ito, as in the sweep's plots.
DYNAMIC, FIXED, ORACLE = "#D55E00", "#0072B2", "#009E73"
STEPS = 200


def draw(
    path: Path, errors_nK: Tensor, grids: Sequence[int], dynamic: Sequence[Saving], oracle: Sequence[Saving]
) -> None:
    """Write a PNG. Left: tokens against fvu. Right: the saving against fixed grids at equal fvu, with its interval.

    Args:
        errors_nK: true errors of n images at K grids.
        dynamic, oracle: one entry per target, ascending.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    figure = import_extra("matplotlib.figure", "sweep").Figure(figsize=(11, 4.6), layout="constrained")
    left, right = figure.subplots(1, 2)
    sizes = torch.tensor([k * k for k in grids], dtype=torch.float64)
    fixed = errors_nK.double().mean(0)
    line = torch.linspace(float(fixed.min()), float(fixed.max()), STEPS, dtype=torch.float64)
    mixture = mixed_tokens(line, fixed.expand(STEPS, -1), sizes)
    left.plot(line, mixture, color=FIXED, linestyle="--", linewidth=1, label="mixture of two fixed grids")
    left.plot(fixed, sizes, color=FIXED, marker="o", linestyle="none", label="fixed grid")
    for size, fvu, grid in zip(sizes.tolist(), fixed.tolist(), grids, strict=True):
        left.annotate(f"{grid} x {grid}", (fvu, size), xytext=(6, 5), textcoords="offset points", fontsize="small")
    left.set(ylabel="mean tokens per image")
    left.margins(x=0.12, y=0.08)
    right.axhline(0, color=FIXED, linestyle="--", linewidth=1, label="mixture of two fixed grids")
    low, high = [100 * row.low for row in dynamic], [100 * row.high for row in dynamic]
    reached = [row.fvu for row in dynamic]
    right.fill_between(reached, low, high, color=DYNAMIC, alpha=0.2, linewidth=0, label="dynamic, 95 % interval")
    right.set(ylabel="tokens saved at equal fvu, %")
    for rows, label, color, width in ((dynamic, "dynamic", DYNAMIC, None), (oracle, "oracle", ORACLE, 1)):
        fvu = [row.fvu for row in rows]
        left.plot(fvu, [row.tokens for row in rows], color=color, linewidth=width, label=label)
        right.plot(fvu, [100 * row.saving for row in rows], color=color, linewidth=width, label=label)
    for axes in (left, right):
        axes.set(xlabel="fvu of held-out images")
        axes.grid(visible=True, color="0.9", linewidth=0.6)
        axes.legend(loc="upper right", frameon=False)
    figure.savefig(path, format="png", dpi=110)

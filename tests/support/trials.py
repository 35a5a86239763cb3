"""Trials with given figures, and the baselines that they are compared with."""

from __future__ import annotations

from typing import Any

from tokconv.sweep.record.events import TrialRecord

TOKEN_GRID = 24
EPOCHS = 9


def figures(fvu: float, swd: float, cosine: float = 0.9, **others: float) -> dict[str, float]:
    """Return one epoch's figures for a store without labels."""
    return {
        "val/fvu": fvu,
        "val/gain": 1 - fvu / 0.1,
        "val/swd": swd,
        "val/swd_floor": 0.05,
        "val/cosine": cosine,
        **others,
    }


def baselines(*grids: int) -> dict[int, dict[str, dict[str, float]]]:
    """Return pooling, window PCA and matched window PCA at every grid."""
    names = {"pooling": (0.1, 0.11), "window_pca": (0.03, 0.45), "matched_window_pca": (0.03, 0.13)}
    return {grid: {name: figures(*pair) for name, pair in names.items()} for grid in grids}


def trial(
    uid: str,
    grid: int = 6,
    state: str = "complete",
    fvu: float = 0.02,
    swd: float = 0.09,
    epochs: int = EPOCHS,
    **others: Any,
) -> TrialRecord:
    """Return a trial with these last figures."""
    ratio = TOKEN_GRID**2 / grid**2
    values = {"model.compressor.output_grid_size": grid, "training.n_critic": 3, "loss.weights.wgan": 0.0123456}
    found = TrialRecord(uid, values, grid, ratio, started=0, state=state, ended=None if state == "running" else 1500)
    for epoch in range(1, epochs + 1):
        slack = 1 + (epochs - epoch) / epochs
        row = figures(fvu * slack, swd * slack, **others)
        found.history.append({**row, "compression_ratio": ratio, "epoch": epoch, "epochs": EPOCHS})
    return found

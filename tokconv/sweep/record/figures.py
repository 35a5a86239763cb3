"""The figures of an event: which of a trial's result are recorded, and that they are finite."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

RECORDED_KINDS = ("val/", "vlm/", "train/", "critic/")
RECORDED_NAMES = ("epoch", "epochs", "compression_ratio")
BEST = "best"
"""Key of a finished trial's last result: figure -> figures of its best epoch by it (`tokconv.training.best`)."""


def recorded_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """Return the figures of an epoch's result that belong in the record."""
    return finite({k: v for k, v in result.items() if k.startswith(RECORDED_KINDS) or k in RECORDED_NAMES})


def interned(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures with one text per name for all events: text takes more memory than a number."""
    return {sys.intern(name): value for name, value in figures.items()}


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """Return the figures that are finite numbers: JSON and MLflow have no others."""
    return {name: float(value) for name, value in figures.items() if abs(float(value)) < float("inf")}

"""What every baseline reaches at a grid, by the evaluation protocol: measured once a store, then read back."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from filelock import FileLock

from tokconv.baselines import FIT_VERSION, fitted_baselines
from tokconv.errors import StoreError
from tokconv.evaluate import Evaluator, Figures, add_gain
from tokconv.files import write_json
from tokconv.grid import check_output_grid
from tokconv.protocol import PROTOCOL
from tokconv.store import TokenStore

SHORTFALL = "pca_shortfall"
"""Figure of both window PCAs: estimated share of the optimum's captured variance that a randomised fit misses."""


def baseline_figures(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    """Figures of every baseline at this grid, computed once per store, grid, protocol and fit, then read back.

    `val/gain` is 1 - fvu / fvu of pooling; window PCAs also have `pca_shortfall`.

    Raises:
        ConfigError: the grid is not in 1..G.
        StoreError: no training or no validation images, or a damaged cache.

    Example:
        >>> baseline_figures(TokenStore.open("runs/stores/digits"), 6)["window_pca"]["val/fvu"]    # doctest: +SKIP
        0.03
    """
    check_output_grid(output_grid, store.token_grid)
    if not len(store.train_indices) or not len(store.val_indices):
        raise StoreError(f"{store.path}: needs training and validation images; encode more of them")
    path = store.derived_dir / f"baselines-p{PROTOCOL}-v{FIT_VERSION}-grid-{output_grid:02d}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    origin = {"protocol": PROTOCOL, "fit_version": FIT_VERSION, "store": store.fingerprint}
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            write_json(path, {**origin, "baselines": _measure(store, output_grid)})
        return _read(path, origin)


def _measure(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    evaluator, fitted = Evaluator(store, output_grid), fitted_baselines(store, output_grid)
    measured = {name: evaluator.evaluate(codec) for name, codec in fitted.codecs.items()}
    for name in ("window_pca", "matched_window_pca"):
        measured[name][SHORTFALL] = fitted.pca_shortfall
    return {name: add_gain(figures, measured["pooling"]) for name, figures in measured.items()}


def _read(path: Path, origin: dict[str, Any]) -> dict[str, Figures]:
    advice = "remove it and it is computed again"
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        baselines = {
            name: {figure: float(value) for figure, value in figures.items()}
            for name, figures in found.pop("baselines").items()
        }
        if not baselines or not all(math.isfinite(value) for row in baselines.values() for value in row.values()):
            raise ValueError("figures are missing or not finite")
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise StoreError(f"{path}: damaged; {advice}") from error
    if found != origin:
        raise StoreError(f"{path}: holds figures of {found}, not of {origin}; {advice}")
    return baselines

"""The figures of every baseline at a grid, by the evaluation protocol: measured once per store, then read back."""

from __future__ import annotations

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.fitting import FIT_VERSION, fitted_baselines
from tokconv.evaluation.baselines.registry import BASELINES, of_kind
from tokconv.evaluation.evaluator import Evaluator, Figures, add_gain
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.models.windows import check_output_grid
from tokconv.store.cache import JsonFigures, Rows, computed_once
from tokconv.store.reader import TokenStore
from tokconv.store.sample import check_varied

SHORTFALL = "pca_shortfall"
"""Figure of both window PCAs: the estimated share of the optimum's captured variance that a randomised fit misses."""


def baseline_figures(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    """Return the figures of every baseline at this grid, computed once per store, grid, protocol and fit.

    `val/gain` is 1 - fvu / fvu of pooling; window PCAs also have `pca_shortfall`.

    Raises:
        ConfigError: the grid is not in 1..G.
        StoreError: the store has no training or no validation images, or no variance, or the file of the figures is
            damaged.

    Example:
        >>> baseline_figures(TokenStore.open("runs/stores/digits"), 6)["window_pca"]["val/fvu"]    # doctest: +SKIP
        0.03
    """
    check_output_grid(output_grid, store.token_grid)
    if not len(store.train_indices) or not len(store.val_indices):
        raise StoreError(f"{store.path}: baselines need training and validation images; encode more of them")
    check_varied(store)
    return computed_once(
        store,
        f"baselines-p{PROTOCOL}-v{FIT_VERSION}-grid-{output_grid:02d}.json",
        lambda: _measure(store, output_grid),
        JsonFigures("baselines"),
        origin={"protocol": PROTOCOL, "fit_version": FIT_VERSION},
        check=_check_rows,
    )


def _check_rows(rows: Rows) -> None:
    if rows.keys() != BASELINES.keys() or any(row.keys() < rows["pooling"].keys() for row in rows.values()):
        raise ValueError("not the figures of all baselines")


def _measure(store: TokenStore, output_grid: int) -> dict[str, Figures]:
    evaluator, fitted = Evaluator(store, output_grid), fitted_baselines(store, output_grid)
    measured = {name: evaluator.evaluate(codec) for name, codec in fitted.codecs.items()}
    for baseline in of_kind("pca"):
        measured[baseline.name][SHORTFALL] = fitted.pca_shortfall
    return {name: add_gain(figures, measured["pooling"]) for name, figures in measured.items()}

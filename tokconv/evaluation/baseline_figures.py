"""The figures of the baselines at a grid, by the evaluation protocol: each measured once per store, then read back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, partial

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.codecs import available, baseline_codec, fit_version
from tokconv.evaluation.baselines.fitting import fit_together, fitted_baselines
from tokconv.evaluation.baselines.registry import BASELINES, Baseline
from tokconv.evaluation.evaluator import Evaluator, Figures, add_gain
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.models.windows import check_output_grid
from tokconv.store.cache import JsonFigures, Rows, computed_once
from tokconv.store.reader import TokenStore
from tokconv.store.sample import check_varied, check_windows

SHORTFALL = "pca_shortfall"
"""Figure of both window PCAs: the estimated share of the optimum's captured variance that a randomised fit misses."""
REFERENCE = "pooling"
"""The baseline that `val/gain` relates to."""
STEPS_OF_FIGURES = 4
"""How many steps of a fit the figures of a baseline take, about."""


def baseline_figures(
    store: TokenStore,
    output_grid: int,
    names: Iterable[str] | None = None,
    *,
    full: bool = True,
    progress: Callable[[str], None] = lambda name: None,
    steps: Callable[[int, int, str], None] = lambda done, total, what: None,
) -> dict[str, Figures]:
    """Return the figures of baselines at this grid, each computed once per store, grid, protocol and fit.

    `val/gain` is 1 - fvu / fvu of pooling; window PCAs also have `pca_shortfall`.

    Args:
        names: the baselines that are wanted; the others cost nothing. None wants all that the store has: downsampled
            images only if they were encoded (`tokconv.encoding.downsampled`).
        full: with the figures that train networks; without them only what every epoch of a trial has is sure to be
            there, in a tenth of the time.
        progress: called with the name of each baseline whose figures are there.
        steps: called while anything is computed, with steps done, their number, and what is computed.

    Raises:
        ConfigError: the grid is not in 1..G, or there is no such baseline.
        StoreError: the store has no training or no validation images, or no variance, or the file of the figures is
            damaged.

    Example:
        >>> store = TokenStore.open("runs/stores/digits")                                       # doctest: +SKIP
        >>> baseline_figures(store, 6, ["window_pca"])["window_pca"]["val/fvu"]                  # doctest: +SKIP
        0.03
    """
    check_output_grid(output_grid, store.token_grid)
    if not len(store.train_indices) or not len(store.val_indices):
        raise StoreError(f"{store.path}: baselines need training and validation images; encode more of them")
    check_varied(store)
    check_windows(store, output_grid)
    wanted = available(store, output_grid) if names is None else [BASELINES[name] for name in names]
    evaluator = cache(partial(Evaluator, store, output_grid))

    def figures(baseline: Baseline) -> Figures:
        every = full or is_measured(store, output_grid, baseline)
        return computed_once(
            store,
            _file_name(baseline, output_grid, full=every),
            lambda: {baseline.name: _measure(evaluator(), baseline, full=every)},
            JsonFigures("baselines"),
            origin={"protocol": PROTOCOL, "fit_version": fit_version(baseline)},
            check=partial(_check_row, baseline.name),
        )[baseline.name]

    reference = BASELINES[REFERENCE]
    missing = [
        entry for entry in dict.fromkeys([reference, *wanted]) if not is_measured(store, output_grid, entry, full=full)
    ]
    to_measure = len(missing) * STEPS_OF_FIGURES
    fits = fit_together(
        store,
        output_grid,
        [entry.name for entry in missing],
        lambda done, total, what: steps(done, total + to_measure, what),
    )
    for number, entry in enumerate(missing):
        steps(fits + number * STEPS_OF_FIGURES, fits + to_measure, f"figures of {entry.title}")
        figures(entry)
        if entry in wanted:
            progress(entry.name)
    if missing:
        steps(fits + to_measure, fits + to_measure, "")
    found = {}
    for baseline in wanted:
        found[baseline.name] = add_gain(figures(baseline), figures(reference))
        if baseline not in missing:
            progress(baseline.name)
    return found


def is_measured(store: TokenStore, output_grid: int, baseline: Baseline, *, full: bool = True) -> bool:
    """Return whether the figures of a baseline are already beside the store; the full ones contain the others."""
    return any((store.derived_dir / _file_name(baseline, output_grid, full=every)).is_file() for every in {True, full})


def _file_name(baseline: Baseline, output_grid: int, *, full: bool) -> str:
    kind = "baselines" if full else "quick-baselines"
    return f"{kind}-{baseline.name}-p{PROTOCOL}-v{fit_version(baseline)}-grid-{output_grid:02d}.json"


def _check_row(name: str, rows: Rows) -> None:
    if rows.keys() != {name} or not {"val/fvu", "val/swd"} <= rows[name].keys():
        raise ValueError(f"not the figures of {name}")


def _measure(evaluator: Evaluator, baseline: Baseline, *, full: bool) -> Figures:
    store, grid = evaluator.store, evaluator.output_grid
    figures = evaluator.evaluate(baseline_codec(store, grid, baseline.name), full=full)
    if baseline.kind == "pca":
        figures[SHORTFALL] = fitted_baselines(store, grid).pca_shortfall
    return figures

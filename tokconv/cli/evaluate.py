"""What `tokconv evaluate` does: the baselines of a store, and an exported compressor beside them, by one protocol."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.encoding.pipeline import STORES
from tokconv.errors import CheckpointError, ConfigError, MissingExtraError, StoreError, require_extra
from tokconv.evaluation.baseline_figures import SHORTFALL, baseline_figures
from tokconv.evaluation.evaluator import Evaluator, Figures, add_gain, codec_of
from tokconv.evaluation.plot import draw_rate_distortion
from tokconv.evaluation.protocol import PROTOCOL, at_least_as_good
from tokconv.evaluation.table import figure_table, legend
from tokconv.exports import artefact as exports
from tokconv.models.windows import chosen_grids, compression_ratio
from tokconv.store.reader import TokenStore
from tokconv.store.remote import open_place, stores_dir
from tokconv.system.devices import resolve_device
from tokconv.system.terminal import progress_line

TITLES = {
    "pooling": "pooling",
    "max_norm": "max norm",
    "bilinear": "bilinear",
    "pixel_shuffle": "pixel shuffle",
    "tome": "ToMe*",
    "prumerge": "PruMerge*",
    "window_pca": "window PCA",
    "matched_window_pca": "matched window PCA",
}
SIDE_INFORMATION = (
    "* also needs a map beside the compressed tokens: which of them each token was merged into. The others do not, so "
    "equal\n  ratios are not equal bits; its tokens stand on no grid."
)


def evaluate_baselines(path: Path | str, *, grids: str | None = None, plot: Path | None = None) -> None:
    """`tokconv evaluate --baselines STORE`: the rate-distortion table, and its plot.

    Args:
        path: a token store, by its directory or its URL.
        grids: output grids with commas, as in "4,6,8,12".
        plot: the PNG to write; None is `derived/rate_distortion.png` of the store.

    Raises:
        ConfigError, StoreError: a grid or a store that cannot be used.
        MissingExtraError: a plot is asked for, and matplotlib is not installed.
    """
    if plot is not None:
        require_extra("sweep", "matplotlib")
        if plot.is_dir():
            raise ConfigError(f"--plot: {plot} is a folder; name the file to write")
    store = open_place(path)
    chosen = chosen_grids(grids, store.token_grid)
    figures: dict[int, dict[str, Figures]] = {}
    with progress_line("baselines") as line:
        for done, grid in enumerate(chosen, start=1):
            figures[grid] = baseline_figures(store, grid)
            line(done, len(chosen))
    print(f"\n{_judged(store)}\n{legend([row for rows in figures.values() for row in rows.values()])}")
    for grid, rows in figures.items():
        print(f"\n{_heading(store, grid)}\n{figure_table(_titled(rows))}\n{_pca_note(rows)}")
    print(f"\n{SIDE_INFORMATION}")
    try:
        out = plot or store.derived_dir / "rate_distortion.png"
        print(f"\nplot: {draw_rate_distortion(figures, TITLES, store.token_grid, out)}")
    except MissingExtraError as error:
        print(f"\nno plot: {error}")


def evaluate_compressor(folder: Path, path: Path | str | None = None, *, device: str | None = None) -> None:
    """`tokconv evaluate COMPRESSOR [STORE]`: an exported compressor beside the baselines of its grid.

    Args:
        folder: what `tokconv export` or a sweep wrote.
        path: a token store of the same encoder; None finds the one it was trained on below runs/stores.

    Raises:
        CheckpointError: no exported compressor, or a store of another encoder.
        StoreError: no store, or one that cannot be used.
    """
    description = exports.read_config(folder)
    compressor, decoder = exports.load_compressor(folder), exports.load_decoder(folder)
    store = open_place(path) if path is not None else _store_of(folder, description)
    _check_encoder(folder, description, store)
    grid = compressor.output_grid_size
    baselines = baseline_figures(store, grid)
    place = resolve_device(device)
    figures = Evaluator(store, grid, place).evaluate(codec_of(compressor.to(place), decoder.to(place)))
    figures = add_gain(figures, baselines["pooling"])
    print(f"{_judged(store)}\n{legend([figures])}\n\n{_heading(store, grid)}")
    print(figure_table({"this compressor": figures, **_titled(baselines)}))
    print(f"{_pca_note(baselines)}\n\n{SIDE_INFORMATION}\n\n{_verdict(figures, baselines)}")
    for note in _differences(description, store):
        print(f"note: {note}")


def _store_of(folder: Path, description: Mapping[str, Any]) -> TokenStore:
    """The store that this compressor was trained on, below runs/stores or among this node's copies."""
    fingerprint = description.get("store_fingerprint")
    store = TokenStore.with_fingerprint(STORES, fingerprint) or TokenStore.with_fingerprint(stores_dir(), fingerprint)
    if store is None:
        raise StoreError(
            f"{folder}: its token store is not below {STORES}; name a store of the same encoder: "
            f"tokconv evaluate {folder} STORE"
        )
    return store


def _check_encoder(folder: Path, description: Mapping[str, Any], store: TokenStore) -> None:
    trained_on, found = description.get("encoder"), store.settings.encoder
    if not isinstance(trained_on, dict):
        raise CheckpointError(f"{folder / 'config.json'}: damaged, it describes no encoder")
    differing = sorted(key for key in {*trained_on, *found} if trained_on.get(key) != found.get(key))
    if differing:
        key = "name" if "name" in differing else differing[0]
        raise CheckpointError(
            f"{folder}: was trained on tokens of another encoder than {store.path} holds ({key}: "
            f"{trained_on.get(key)!r}, not {found.get(key)!r}); name a store of its own encoder"
        )


def _differences(description: Mapping[str, Any], store: TokenStore) -> list[str]:
    """What keeps the figures above from being compared with those of the export."""
    notes = []
    # The first protocol was not written.
    protocol = description.get("protocol", 1)
    if protocol != PROTOCOL:
        notes.append(
            f"the figures in its config.json are of evaluation protocol {protocol}, those above of {PROTOCOL}; the two "
            "do not compare"
        )
    if description.get("store_fingerprint") != store.fingerprint:
        notes.append(
            "it was trained on another store of this encoder; images held out here may be among those it was trained "
            "on, and the figures in its config.json are of other images"
        )
    return notes


def _verdict(figures: Figures, baselines: Mapping[str, Figures]) -> str:
    """Which baselines leave no reason to use this compressor: at least as good in error and in token-likeness."""
    better = [TITLES[name] for name in at_least_as_good(baselines, figures)]
    if better:
        return f"At least as good on both fvu and swd: {', '.join(better)}."
    return "No baseline is at least as good on both fvu and swd."


def _judged(store: TokenStore) -> str:
    return f"{store.path}: held-out figures, evaluation protocol {PROTOCOL}"


def _heading(store: TokenStore, grid: int) -> str:
    ratio = compression_ratio(store.token_grid, grid)
    return f"{grid}x{grid}: {store.num_tokens} to {grid**2} tokens, {ratio:.3g}x fewer"


def _titled(rows: Mapping[str, Figures]) -> dict[str, Figures]:
    return {TITLES[name]: figures for name, figures in rows.items()}


def _pca_note(rows: Mapping[str, Figures]) -> str:
    shortfall = rows["window_pca"][SHORTFALL]
    if not shortfall:
        return "window PCA: exact"
    return f"window PCA: randomised, may capture {shortfall:.2g} of the optimum's variance less than it (estimate)"

"""`tokconv evaluate`: the baselines of a store, or an exported compressor next to them, by the evaluation protocol."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import ConfigError, MissingExtraError, printable, require_extra
from tokconv.evaluation.baseline_figures import SHORTFALL
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.evaluator import Figures
from tokconv.evaluation.plot import draw_rate_distortion
from tokconv.evaluation.protocol import PROTOCOL, protocol_of
from tokconv.evaluation.purposes import PURPOSES
from tokconv.evaluation.table import figure_table, legend
from tokconv.exports.artefact import FILES, read_config
from tokconv.exports.champions import find_champions
from tokconv.exports.evaluate import evaluate, find_store
from tokconv.models.windows import chosen_grids, compression_ratio
from tokconv.store.reader import TokenStore
from tokconv.store.remote import open_place
from tokconv.system.devices import resolve_device
from tokconv.system.files import file_digest
from tokconv.training.baselines import measure_baselines

SIDE_INFORMATION = (
    "* also needs a map next to the compressed tokens: which of them each token was merged into. The others do not, so "
    "equal\n  ratios are not equal bits; and its tokens form no grid."
)


def run(args: argparse.Namespace) -> None:
    """Evaluate baselines or a compressor. Raises TokconvError."""
    if args.baselines is not None:
        _evaluate_baselines(args.baselines, grids=args.grids, plot=args.plot, device=args.device)
    else:
        for number, folder in enumerate(_different(find_champions(args.compressor, args.grid, args.purpose))):
            print("\n" if number else "", end="")
            _evaluate_compressor(folder, args.store, device=args.device)


def _different(champions: Mapping[str, Path]) -> list[Path]:
    """Return one folder of each compressor, and print which names mean the same one: a trial can win twice."""
    names: dict[str, list[str]] = {}
    for name, folder in champions.items():
        weights = folder / FILES["compressor"]
        names.setdefault(file_digest(weights) if weights.is_file() else name, []).append(name)
    for first, *others in names.values():
        if others:
            print(f"{first} is also {' and '.join(others)}")
    return [champions[first] for first, *_ in names.values()]


def _evaluate_baselines(place: Path | str, *, grids: str | None, plot: Path | None, device: str | None) -> None:
    """Print the rate-distortion table of a store, and draw it if matplotlib is installed or `plot` asks for it."""
    if plot is not None:
        require_extra("sweep", "matplotlib")
        if plot.is_dir():
            raise ConfigError(f"--plot: {plot} is a folder; name the file to write")
    # Checked here, because it is used only if downsampled images have to be encoded.
    device = str(resolve_device(device))
    store = open_place(place)
    chosen = chosen_grids(grids, store.token_grid)
    figures = measure_baselines(store, chosen, device=device)
    print(f"\n{_title(store)}\n{legend([row for rows in figures.values() for row in rows.values()])}")
    for grid, rows in figures.items():
        print(f"\n{_heading(store, grid)}\n{figure_table(_labelled(rows))}\n{_pca_note(rows)}")
    print(f"\n{SIDE_INFORMATION}")
    try:
        out = plot or store.derived_dir / "rate_distortion.png"
        print(f"\nplot: {printable(draw_rate_distortion(figures, store.token_grid, out))}")
    except MissingExtraError as error:
        print(f"\nno plot: {error}")


def _evaluate_compressor(folder: Path, place: Path | str | None, *, device: str | None) -> None:
    """Print the figures of an exported compressor and of the baselines at its grid, and whether it beats them."""
    description = read_config(folder)
    fingerprint = description.get("store_fingerprint")
    advice = f"name a store of the same encoder: tokconv evaluate {shlex.quote(str(folder))} STORE"
    store = find_store(folder, fingerprint, advice=advice) if place is None else open_place(place)
    figures = evaluate(folder, store, device=device)
    grid = description["compressor"]["output_grid_size"]
    baselines = measure_baselines(store, [grid], device=device)[grid]
    print(f"{_title(store)}\n{legend([figures])}\n\n{_heading(store, grid)}")
    print(figure_table({"this compressor": figures, **_labelled(baselines)}))
    print(f"{_pca_note(baselines)}\n\n{SIDE_INFORMATION}\n")
    for line in _verdicts(figures, baselines):
        print(line)
    for note in _differences(description, store):
        print(f"note: {printable(note)}")


def _differences(description: Mapping[str, Any], store: TokenStore) -> list[str]:
    """Return what keeps the figures above from being compared with those of the export."""
    notes = []
    protocol = protocol_of(description)
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


def _verdicts(figures: Figures, baselines: Mapping[str, Figures]) -> list[str]:
    """Return one line per purpose: whether this compressor beats the best closed form, and what to do if not."""
    return [purpose.compared(figures, baselines) for purpose in PURPOSES.values() if purpose.figure(figures)]


def _title(store: TokenStore) -> str:
    return f"{printable(store.path)}: held-out figures, evaluation protocol {PROTOCOL}\n{store.summary}"


def _heading(store: TokenStore, grid: int) -> str:
    ratio = compression_ratio(store.token_grid, grid)
    return f"{grid}x{grid}: {store.num_tokens} to {grid**2} tokens, {ratio:.3g}x fewer"


def _labelled(rows: Mapping[str, Figures]) -> dict[str, Figures]:
    return {BASELINES[name].label: figures for name, figures in rows.items()}


def _pca_note(rows: Mapping[str, Figures]) -> str:
    shortfall = rows["window_pca"][SHORTFALL]
    if not shortfall:
        return "window PCA: exact"
    return f"window PCA: randomised, may capture {shortfall:.2g} of the optimum's variance less than it (estimate)"

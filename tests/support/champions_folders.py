"""Folders of exported compressors for tests: window PCA at several grids, for one token store."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file

from support.artefacts import write_export
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.exports.artefact import load_compressor, load_decoder
from tokconv.store.reader import TokenStore


def write_champions(folder: Path, store: TokenStore, grids: Sequence[int] = (2, 3, 6)) -> Path:
    """Write `FOLDER/grid-NN` as a sweep on this store would, and return the folder."""
    for grid in grids:
        path = write_export(folder / f"grid-{grid:02d}", store.token_grid, store.dim, grid)
        modules = {"model": load_compressor(path), "decoder": load_decoder(path)}
        for module in modules.values():
            module.standardise.mean.copy_(store.mean)
            module.standardise.scale.fill_(store.scale)
        fitted_baselines(store, grid).linear["window_pca"].fill(modules["model"], modules["decoder"])
        for name, module in modules.items():
            save_file(module.state_dict(), path / f"{name}.safetensors")
        change_config(path, store_fingerprint=store.fingerprint, encoder=store.settings.encoder)
    return folder


def change_config(path: Path, **values: object) -> None:
    """Overwrite entries of an export's config.json."""
    description = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(description | values))


def files_of(folder: Path) -> dict[str, bytes]:
    """Return the content of every file below a folder, by relative path."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}

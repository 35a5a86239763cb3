"""What a language model may read instead of all tokens: exported compressors, closed forms, smaller images."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.errors import CheckpointError
from tokconv.evaluation.baselines.codecs import baseline_codec, fit_version, on_device
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import compress_only
from tokconv.evaluation.purposes import PURPOSES
from tokconv.exports.answers.figures import ALL
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.stores import check_store
from tokconv.exports.artefact import FILES, load_compressor
from tokconv.exports.champions import champions_folder, champions_in, find_champion, is_export
from tokconv.exports.integrations.attach import attach
from tokconv.exports.integrations.attachment import NAME as COMPRESSOR
from tokconv.exports.integrations.family import check_encoder
from tokconv.store.reader import TokenStore
from tokconv.system.files import file_digest

DOWNSAMPLED = "downsampled"
Load = Callable[[int], Image.Image]


@dataclass(frozen=True)
class Batch:
    """Images of a task: their numbers, the tower's tokens [b * T, N, C] of their T tiles, and a way to open them."""

    numbers: Tensor
    tokens: Tensor
    load: Load
    rows: Tensor
    """[b * T] int64: the numbers of the tiles among those of all images."""


class Method(ABC):
    """One way to make K tokens of an image.

    Attributes:
        series: the line in a plot that it belongs to; the same at every grid.
        grid: k, with K = k * k.
        title: its name in a table.
        reader: the model that reads its tokens; None for the one that everything is compared with.
    """

    reader: AnsweringModel | None = None

    def __init__(self, series: str, grid: int, title: str | None = None) -> None:
        self.series, self.grid, self.title = series, grid, title or series

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.series}-{self.grid:02d}"

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Do once what takes long, such as a fit."""

    def release(self) -> None:
        """Let go of what only measuring needs."""
        self.reader = None

    @abstractmethod
    def compress(self, batch: Batch) -> Tensor:
        """Return the tokens [b * T, K, C] of a batch, float32."""

    @abstractmethod
    def identity(self) -> dict[str, Any]:
        """Return JSON that is equal only for a method with the same results."""


class AllTokens(Method):
    """Every token of the tower."""

    def __init__(self, grid: int) -> None:
        super().__init__(ALL, grid)

    def compress(self, batch: Batch) -> Tensor:
        return batch.tokens

    def identity(self) -> dict[str, Any]:
        return {"method": ALL}


class Exported(Method):
    """An exported compressor.

    Raises:
        CheckpointError: the folder holds none, or a damaged one.
        ConfigError: it does not fit the model.
    """

    def __init__(self, model: AnsweringModel, folder: Path, series: str) -> None:
        self._compressor = load_compressor(folder)
        # Attaching checks that it fits; what it computes is what is computed below.
        attach(model.model, self._compressor).detach()
        check_encoder(model.model.config, self._compressor, model.processor)
        super().__init__(series, self._compressor.output_grid_size)
        self.folder = folder

    @torch.inference_mode()
    def compress(self, batch: Batch) -> Tensor:
        weight = next(self._compressor.parameters())
        return self._compressor(batch.tokens.to(weight.device, weight.dtype)).float()

    def identity(self) -> dict[str, Any]:
        return {"method": "exported", "sha256": file_digest(self.folder / FILES["compressor"])}


class Adapted(Exported):
    """A model that was trained further on the tokens of a compressor, which lies beside its weights.

    Raises:
        CheckpointError, ConfigError: as `Exported`.
    """

    def __init__(self, model: AnsweringModel, folder: Path, series: str) -> None:
        super().__init__(model, export_of(folder), series)
        self._place, self._device = folder, model.device

    def prepare(self) -> None:
        self.reader = AnsweringModel(self._place, self._device)

    def identity(self) -> dict[str, Any]:
        weights = {path.name: file_digest(path) for path in sorted(self._place.glob("*.safetensors"))}
        return {**super().identity(), "method": "adapted", "weights": weights}


class ClosedForm(Method):
    """A baseline, fitted on the training images of a store of the model's tower."""

    def __init__(self, store: TokenStore, grid: int, name: str, device: torch.device) -> None:
        super().__init__(name, grid, BASELINES[name].label)
        self._store, self._device = store, device

    def prepare(self) -> None:
        self._codec = on_device(baseline_codec(self._store, self.grid, self.series), self._device)

    def compress(self, batch: Batch) -> Tensor:
        return compress_only(self._codec, batch.tokens.to(self._device), batch.rows)

    def identity(self) -> dict[str, Any]:
        version = fit_version(BASELINES[self.series])
        return {"method": self.series, "version": version, "store": self._store.fingerprint}


class SmallImages(Method):
    """The tower's own tokens of the image downsampled to k x k patches."""

    def __init__(self, model: AnsweringModel, grid: int) -> None:
        super().__init__(DOWNSAMPLED, grid, BASELINES[DOWNSAMPLED].label)
        self._model = model

    def compress(self, batch: Batch) -> Tensor:
        return self._model.tower_tokens([batch.load(number) for number in batch.numbers.tolist()], self.grid)

    def identity(self) -> dict[str, Any]:
        return {"method": DOWNSAMPLED}


def export_of(folder: Path) -> Path:
    """Return the folder of a compressor: the one itself, or that beside the weights of an adapted model."""
    return folder / COMPRESSOR if (folder / COMPRESSOR).is_dir() else folder


def find_exports(places: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return the series and the folder of every compressor that some places hold: exported folders, sweeps with all
    their champions, by directory or name, or models that were adapted to a compressor.

    Raises:
        CheckpointError: a place holds none, or two compressors would have one name.
    """
    found: list[tuple[str, Path]] = []
    for given in places:
        if export_of(given) != given:
            found.append((f"{given.resolve().name} adapted", given))
            continue
        place = champions_folder(given)
        champions = {} if is_export(place) else champions_in(place)
        sweep = place.parent.name if place.name == "champions" else place.name
        several = [(f"{sweep} {purpose}", path) for (_, purpose), path in champions.items()]
        found += several or [(series_of(find_champion(given)), find_champion(given))]
    return found


def series_of(folder: Path) -> str:
    """Return the name of an exported folder: with its sweep, if it is a champion."""
    inside = folder.resolve()
    if inside.name in PURPOSES and inside.parent.parent.name == "champions":
        return f"{inside.parent.parent.parent.name} {inside.name}"
    return inside.name


def all_methods(
    model: AnsweringModel,
    exports: Sequence[tuple[str, Path]],
    store: TokenStore | None,
    grids: Sequence[int],
    baselines: Sequence[str],
) -> list[Method]:
    """Return all tokens first, then every method, those of few tokens first.

    Args:
        exports: of `find_exports`.
        store: what the baselines are fitted on; None only without baselines that are.
        grids: of the baselines.
        baselines: by name; `downsampled` needs no store.

    Raises:
        CheckpointError: a compressor cannot be loaded, or two have one name and grid.
        ConfigError: a compressor or the store does not fit the model; there is no such baseline.
    """
    found: list[Method] = [
        (Exported if export_of(folder) == folder else Adapted)(model, folder, series) for series, folder in exports
    ]
    names = [method.name for method in found]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise CheckpointError(f"two compressors are called {double}; rename the folder of one")
    for name in baselines:
        if name == DOWNSAMPLED:
            found += [SmallImages(model, grid) for grid in grids]
        elif BASELINES[name]:
            assert store is not None
            check_store(store, model)
            found += [ClosedForm(store, grid, name, model.device) for grid in grids]
    for method in found:
        model.check_grid(method.grid)
    return [AllTokens(model.token_grid), *sorted(found, key=lambda method: method.grid)]

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

from tokconv.errors import CheckpointError, ConfigError
from tokconv.evaluation.baselines.codecs import baseline_codec, fit_version
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import compress_only
from tokconv.evaluation.purposes import PURPOSES
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.artefact import FILES, load_compressor
from tokconv.exports.champions import champions_in, find_champion, is_export
from tokconv.exports.integrations.attach import attach
from tokconv.store.reader import TokenStore
from tokconv.system.files import file_digest

ALL = "all tokens"
DOWNSAMPLED = "downsampled"
COLORS = ("#e41a1c", "#377eb8", "#4daf4a", "#984ea3", "#ff7f00", "#a65628")
"""Of exported compressors in plots, in the order in which they are named."""
Load = Callable[[int], Image.Image]


@dataclass(frozen=True)
class Batch:
    """Images of a task: their numbers, the tower's tokens [b, N, C], and a way to open them."""

    numbers: Tensor
    tokens: Tensor
    load: Load


class Method(ABC):
    """One way to make K tokens of an image.

    Attributes:
        series: the line in a plot that it belongs to; the same at every grid.
        grid: k, with K = k * k.
        title: its name in a table.
    """

    def __init__(self, series: str, grid: int, title: str | None = None) -> None:
        self.series, self.grid, self.title = series, grid, title or series

    @property
    def name(self) -> str:
        """Its name in files."""
        return f"{self.series}-{self.grid:02d}"

    def prepare(self) -> None:  # noqa: B027 (most have nothing to prepare)
        """Do once what takes long, such as a fit."""

    @abstractmethod
    def compress(self, batch: Batch) -> Tensor:
        """Return the tokens [b, K, C] of a batch, float32."""

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
        # Attaching checks layer, width and grid; what it computes is what is computed below.
        attach(model.model, self._compressor, model.processor).detach()
        super().__init__(series, self._compressor.output_grid_size)
        self.folder = folder

    @torch.inference_mode()
    def compress(self, batch: Batch) -> Tensor:
        weight = next(self._compressor.parameters())
        return self._compressor(batch.tokens.to(weight.device, weight.dtype)).float()

    def identity(self) -> dict[str, Any]:
        return {"method": "exported", "sha256": file_digest(self.folder / FILES["compressor"])}


class ClosedForm(Method):
    """A baseline, fitted on the training images of a store of the model's tower."""

    def __init__(self, store: TokenStore, grid: int, name: str) -> None:
        super().__init__(name, grid, BASELINES[name].label)
        self._store = store

    def prepare(self) -> None:
        self._codec = baseline_codec(self._store, self.grid, self.series)

    def compress(self, batch: Batch) -> Tensor:
        # Fits stay on the CPU.
        return compress_only(self._codec, batch.tokens.cpu(), batch.numbers)

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


def find_exports(places: Iterable[Path]) -> list[tuple[str, Path]]:
    """Return the series and the folder of every compressor that some places hold: exported folders, or sweeps with all
    their champions.

    Raises:
        CheckpointError: a place holds none, or two compressors would have one name.
    """
    found: list[tuple[str, Path]] = []
    for place in places:
        champions = {} if is_export(place) else champions_in(place)
        sweep = place.parent.name if place.name == "champions" else place.name
        several = [(f"{sweep} {purpose}", path) for (_, purpose), path in champions.items()]
        found += several or [(_series(find_champion(place)), find_champion(place))]
    return found


def _series(folder: Path) -> str:
    """Return the name of an exported folder: with its sweep, if it is a champion."""
    inside = folder.resolve()
    if inside.name in PURPOSES and inside.parent.parent.name == "champions":
        return f"{inside.parent.parent.parent.name} {inside.name}"
    return inside.name


def check_store(store: TokenStore, model: AnsweringModel) -> None:
    """Raise ConfigError unless a store holds tokens like those of the model's tower."""
    layer = store.settings.encoder.get("layer")
    num_layers = model.model.config.vision_config.num_hidden_layers
    own = model.layer if model.layer >= 0 else num_layers + 1 + model.layer
    for what, found, wanted in (
        ("width", store.dim, model.dim),
        ("token grid", store.token_grid, model.token_grid),
        ("hidden layer", layer, own),
    ):
        if found != wanted:
            raise ConfigError(
                f"{store.path}: its {what} is {found}, that of the model's tower is {wanted}; baselines need a store "
                "of this tower (model.clip.model_name, model.clip.layer)"
            )


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
    found: list[Method] = [Exported(model, folder, series) for series, folder in exports]
    names = [method.name for method in found]
    if double := next((name for name in names if names.count(name) > 1), None):
        raise CheckpointError(f"two compressors are called {double}; rename the folder of one")
    for name in baselines:
        if name == DOWNSAMPLED:
            found += [SmallImages(model, grid) for grid in grids]
        elif BASELINES[name]:
            assert store is not None
            check_store(store, model)
            found += [ClosedForm(store, grid, name) for grid in grids]
    return [AllTokens(model.token_grid), *sorted(found, key=lambda method: method.grid)]

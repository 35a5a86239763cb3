"""The baselines of a grid that are fitted in one pass over the training sample, stored next to the token store.

D = W*C is the width of a window.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.linear import LinearCodec, decode_windows
from tokconv.evaluation.baselines.merging import Merge, unmerge
from tokconv.evaluation.baselines.pca import Components, WindowMoments, exact_components, randomised_components
from tokconv.evaluation.baselines.registry import Baseline, of_kind
from tokconv.evaluation.baselines.regression import Regression
from tokconv.evaluation.codecs import Codec, ImageCodec
from tokconv.models.blocks import Standardise
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore
from tokconv.store.sample import BATCH, MAX_IMAGES, check_varied, standardised_batches, training_sample

PROJECTIONS, PCAS = of_kind("projection"), of_kind("pca")
SELECTIONS, MERGERS = of_kind("selection", "image_selection"), of_kind("merging")
LINEAR = of_kind("projection", "pca")
FITTED_TOGETHER = of_kind("projection", "pca", "selection", "image_selection", "merging")
"""The baselines of this module. The others cost more or need more than the tokens, and are fitted when asked for."""
SHORTFALL = "window_pca.shortfall"

FIT_VERSION = 3
"""Grows with every change of what a fit computes, so that files of older fits are not read."""
MAX_DECOMPOSED = 2560
"""Largest D at which the covariance is decomposed in full, exactly."""
MAX_COVARIANCE = 4096
"""Largest D at which the covariance is computed at all; above it components come from at most SVD_BYTES of windows."""
SVD_BYTES = 2**31

Select = Callable[..., Tensor]
Run = Callable[..., tuple[Tensor, Tensor]]
"""As a codec, but on standardised tokens; it takes the images as second argument if the baseline reads them."""
Shape = tuple[int, ...]


@dataclass(frozen=True)
class FittedBaselines:
    """These baselines of one store and grid.

    codecs: by name, on the CPU.
    linear: those that are affine on both sides, on standardised tokens: they can fill the networks' window projections.
    pca_shortfall: `tokconv.evaluation.baselines.pca.Components.shortfall` of both window PCAs.
    """

    codecs: Mapping[str, Codec | ImageCodec]
    linear: Mapping[str, LinearCodec]
    pca_shortfall: float


def fitted_baselines(store: TokenStore, output_grid: int) -> FittedBaselines:
    """Return these baselines of a grid, fitted at the first call per store (one process fits, others wait).

    Raises:
        ConfigError: the grid is not in 1..G.
        StoreError: the store has no training images or no variance, or the file of the fit is damaged.

    Example:
        >>> compressed, reconstructed = fitted_baselines(store, 6).codecs["tome"](tokens)    # doctest: +SKIP
    """
    windows = Windows(store.token_grid, output_grid)
    check_fittable(store)
    tensors = computed_once(
        store,
        f"codecs-v{FIT_VERSION}-grid-{output_grid:02d}.safetensors",
        lambda: fit_baselines(store, output_grid),
        Tensors(),
        check=partial(_check_tensors, store, windows),
    )
    return _assemble(tensors, store, windows)


def check_fittable(store: TokenStore) -> None:
    """Raise StoreError if a store has no training images, or no variance."""
    if not len(store.train_indices):
        raise StoreError(f"{store.path}: no training images to fit baselines on; encode more of them")
    check_varied(store)


def fit_baselines(store: TokenStore, output_grid: int) -> Mapping[str, Tensor]:
    """Fit them on at most 2,048 training images (fixed seed): "NAME.FIELD" -> float32 tensor."""
    sums = _Sums(store.dim, Windows(store.token_grid, output_grid))
    images = training_sample(store)
    for tokens, of in zip(standardised_batches(store, images), images.split(BATCH), strict=True):
        sums.update(tokens, of)
    tensors: dict[str, Tensor] = {}
    for name, regression in sums.of_cells.items():
        weight, bias = regression.solve()
        tensors |= {f"{name}.decode_weight": weight.float(), f"{name}.decode_bias": bias[0].float()}
    for name, regression in sums.of_merged.items():
        weight, bias = regression.solve()
        tensors |= {f"{name}.weight": weight.float(), f"{name}.bias": bias.float()}
    for name, weight in sums.projections.items():
        tensors |= {f"{name}.encode_weight": weight, f"{name}.encode_bias": torch.zeros(store.dim)}
    components = _components(store, sums)
    for baseline in PCAS:
        codec = baseline.function(components, sums.moments)
        tensors |= {f"{baseline.name}.{field}": value for field, value in vars(codec).items()}
    return {**tensors, SHORTFALL: torch.tensor(components.shortfall, dtype=torch.float64)}


class _Sums:
    """What one pass over the tokens collects: one regression per baseline, second moments of windows and tokens."""

    def __init__(self, dim: int, windows: Windows) -> None:
        self.windows, self.width = windows, windows.window_size * dim
        self.projections = {entry.name: entry.function(dim, windows.window_size) for entry in PROJECTIONS}
        self.of_cells = {entry.name: Regression(dim, self.width) for entry in (*PROJECTIONS, *SELECTIONS)}
        self.of_merged = {entry.name: Regression(dim, dim, windows.token_grid**2) for entry in MERGERS}
        self.has_covariance = self.width <= MAX_COVARIANCE
        side = self.width if self.has_covariance else 0
        self._window_square = torch.zeros(side, side, dtype=torch.float64)
        self._token_square = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, standardised_BNC: Tensor, images_B: Tensor) -> None:
        """Add a batch of these images."""
        members = self.windows.split(standardised_BNC).flatten(0, 1)
        flat = members.flatten(1)
        for name, weight in self.projections.items():
            self.of_cells[name].update((flat @ weight.T)[:, None], flat[:, None])
        for entry in SELECTIONS:
            of_images = (images_B,) if entry.reads_images else ()
            cells = entry.function(standardised_BNC, self.windows, *of_images)
            self.of_cells[entry.name].update(cells.flatten(0, 1)[:, None], flat[:, None])
        for entry in MERGERS:
            merged, groups = entry.function(standardised_BNC, self.windows.num_cells)
            self.of_merged[entry.name].update(unmerge(merged, groups), standardised_BNC)
        tokens = members.flatten(0, 1)
        self._token_square += tokens.T @ tokens
        if self.has_covariance:
            self._window_square += flat.T @ flat

    @property
    def window_mean(self) -> Tensor:
        """[D] float64."""
        return self.of_cells["pooling"].out_mean[0]

    @property
    def window_covariance(self) -> Tensor:
        """[D, D] float64; only if `has_covariance`."""
        return self._window_square / self.of_cells["pooling"].count - torch.outer(self.window_mean, self.window_mean)

    @property
    def moments(self) -> WindowMoments:
        """Moments that the two PCAs need in addition to the components."""
        pooling = self.of_cells["pooling"]
        mean = pooling.in_mean[0]
        covariance = self._token_square / (pooling.count * self.windows.window_size) - torch.outer(mean, mean)
        return WindowMoments(self.window_mean, mean, covariance, pooling.cross_covariance)


def _components(store: TokenStore, sums: _Sums) -> Components:
    if sums.has_covariance:
        covariance = sums.window_covariance
        if sums.width <= MAX_DECOMPOSED:
            return exact_components(covariance, store.dim)
        return randomised_components(
            covariance.matmul, width=sums.width, rank=sums.width, dim=store.dim, dtype=torch.float64
        )
    cells = sums.windows.num_cells
    images = training_sample(store, min(MAX_IMAGES, max(1, SVD_BYTES // (4 * sums.width * cells))))
    sample = torch.empty(len(images) * cells, sums.width)
    first = 0
    for tokens in standardised_batches(store, images):
        rows = sample[first : first + len(tokens) * cells]
        torch.sub(sums.windows.split(tokens).flatten(0, 1).flatten(1), sums.window_mean.float(), out=rows)
        first += len(rows)
    return randomised_components(
        lambda basis: sample.T @ (sample @ basis) / len(sample),
        width=sums.width,
        rank=min(sample.shape),
        dim=store.dim,
        dtype=torch.float32,
    )


def _check_tensors(store: TokenStore, windows: Windows, tensors: Mapping[str, Tensor]) -> None:
    has_shapes(_shapes(store, windows))(tensors)
    if not 0 <= float(tensors[SHORTFALL]) <= 1:
        raise ValueError(f"{SHORTFALL} is not a share")


def _shapes(store: TokenStore, windows: Windows) -> dict[str, Shape]:
    dim, width = store.dim, store.dim * windows.window_size
    decoder: dict[str, Shape] = {"decode_weight": (width, dim), "decode_bias": (width,)}
    linear: dict[str, Shape] = {"encode_weight": (dim, width), "encode_bias": (dim,), **decoder}
    merging: dict[str, Shape] = {"weight": (dim, dim), "bias": (store.num_tokens, dim)}
    kinds = {"projection": linear, "pca": linear, "selection": decoder, "image_selection": decoder, "merging": merging}
    return {SHORTFALL: ()} | {
        f"{entry.name}.{field}": shape for entry in FITTED_TOGETHER for field, shape in kinds[entry.kind].items()
    }


def _assemble(tensors: Mapping[str, Tensor], store: TokenStore, windows: Windows) -> FittedBaselines:
    own: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key in tensors.keys() - {SHORTFALL}:
        name, field = key.split(".")
        own[name][field] = tensors[key]
    linear = {entry.name: LinearCodec(**own[entry.name]) for entry in LINEAR}
    runs: dict[str, Run] = {name: partial(_run_linear, codec, windows) for name, codec in linear.items()}
    runs |= {e.name: partial(_run_selection, e.function, windows, **own[e.name]) for e in SELECTIONS}
    runs |= {e.name: partial(_run_merging, e.function, windows.num_cells, **own[e.name]) for e in MERGERS}
    codecs = {entry.name: codec_in_token_units(store, entry, runs[entry.name]) for entry in FITTED_TOGETHER}
    return FittedBaselines(codecs, linear, float(tensors[SHORTFALL]))


def codec_in_token_units(store: TokenStore, baseline: Baseline, run: Run) -> Codec | ImageCodec:
    """Return the codec of a baseline whose `run` takes and returns standardised tokens."""
    codec = partial(_in_token_units, Standardise(store.dim, store.mean, store.scale), run)
    return ImageCodec(codec) if baseline.reads_images else codec


def _run_linear(codec: LinearCodec, windows: Windows, standardised: Tensor) -> tuple[Tensor, Tensor]:
    cells = codec.compress(standardised, windows)
    return cells, codec.decode(cells, windows)


def _run_selection(
    select: Select, windows: Windows, standardised: Tensor, *images: Tensor, decode_weight: Tensor, decode_bias: Tensor
) -> tuple[Tensor, Tensor]:
    cells = select(standardised, windows, *images)
    return cells, decode_windows(cells, windows, decode_weight, decode_bias)


def _run_merging(
    merge: Merge, num_merged: int, standardised: Tensor, *, weight: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor]:
    merged, groups = merge(standardised, num_merged)
    return merged, F.linear(unmerge(merged, groups), weight) + bias


@torch.no_grad()
def _in_token_units(standardise: Standardise, run: Run, tokens_BNC: Tensor, *images: Tensor) -> tuple[Tensor, Tensor]:
    compressed, reconstructed = run(standardise(tokens_BNC), *images)
    return standardise.restore(compressed), standardise.restore(reconstructed)

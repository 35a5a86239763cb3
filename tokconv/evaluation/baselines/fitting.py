"""Every baseline of a grid: fitted in one pass over the training sample, kept beside the token store, read back.

D = W*C is the width of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.linear import LinearCodec, averaging, decode_windows, shuffling
from tokconv.evaluation.baselines.merging import Merge, MergeCodec, prumerge, tome, unmerge
from tokconv.evaluation.baselines.pca import (
    Components,
    exact_components,
    matched_window_pca,
    randomised_components,
    window_pca,
)
from tokconv.evaluation.baselines.regression import Regression
from tokconv.evaluation.baselines.selection import furthest_token, resized
from tokconv.models.blocks import Standardise
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.store.sample import MAX_IMAGES, standardised_batches, training_sample
from tokconv.system.files import atomic_path

BASELINES = (
    "pooling",
    "max_norm",
    "bilinear",
    "pixel_shuffle",
    "tome",
    "prumerge",
    "window_pca",
    "matched_window_pca",
)
LINEAR = ("pooling", "pixel_shuffle", "window_pca", "matched_window_pca")
SELECTIONS = {"max_norm": furthest_token, "bilinear": resized}
MERGES: dict[str, Merge] = {"tome": tome, "prumerge": prumerge}
SHORTFALL = "window_pca.shortfall"

FIT_VERSION = 2
"""Grows with every change of what a fit gives, so that what a store keeps of an older one is not read."""
MAX_DECOMPOSED = 2560
"""Largest D whose covariance is decomposed in full, exactly."""
MAX_COVARIANCE = 4096
"""Largest D whose covariance is kept at all; above it components come from at most SVD_BYTES of windows."""
SVD_BYTES = 2**31

Codec = Callable[[Tensor], tuple[Tensor, Tensor]]
Shape = tuple[int, ...]


@dataclass(frozen=True)
class Fitted:
    """The baselines of one store and grid.

    codecs: by name, [B, N, C] -> compressed [B, K, C] and reconstructed [B, N, C], all in token units, on the CPU.
    linear: those that are affine on both sides, on standardised tokens.
    selecting: decoders of those that are not, but answer a cell a window: weight [W*C, C], bias [W*C].
    pca_shortfall: `tokconv.evaluation.baselines.pca.Components.shortfall` of both window PCAs.
    """

    codecs: Mapping[str, Codec]
    linear: Mapping[str, LinearCodec]
    selecting: Mapping[str, tuple[Tensor, Tensor]]
    pca_shortfall: float


def linear_codecs(store: TokenStore, output_grid: int) -> Mapping[str, LinearCodec]:
    """The baselines of a grid that can fill the window projections of our own networks; see `fitted_baselines`."""
    return fitted_baselines(store, output_grid).linear


def fitted_baselines(store: TokenStore, output_grid: int) -> Fitted:
    """Every baseline of a grid, from the store's cache or fitted now (one process fits, others wait).

    Raises:
        ConfigError: the grid is not in 1..G.
        StoreError: no training images, or the cache is damaged.

    Example:
        >>> compressed, reconstructed = fitted_baselines(store, 6).codecs["tome"](tokens)    # doctest: +SKIP
    """
    windows = Windows(store.token_grid, output_grid)
    if not len(store.train_indices):
        raise StoreError(f"{store.path}: no training images to fit baselines on; encode more of them")
    path = store.derived_dir / f"codecs-v{FIT_VERSION}-grid-{output_grid:02d}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with atomic_path(path) as temporary:
                save_file(fit(store, output_grid), temporary, {"store": store.fingerprint})
        return _assemble(_read(path, store, windows), store, windows)


def fit(store: TokenStore, output_grid: int) -> dict[str, Tensor]:
    """Fit every baseline of a grid on at most 2,048 training images (fixed seed): "NAME.FIELD" -> float32 tensor."""
    sums = _Sums(store.dim, Windows(store.token_grid, output_grid))
    for tokens in standardised_batches(store, training_sample(store)):
        sums.update(tokens)
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
    pooling = sums.of_cells["pooling"]
    center, token_mean = pooling.out_mean[0], pooling.in_mean[0]
    plain = window_pca(components, center)
    matched = matched_window_pca(components, center, token_mean, sums.token_covariance, pooling.cross_covariance)
    for name, codec in (("window_pca", plain), ("matched_window_pca", matched)):
        tensors |= {f"{name}.{field}": value for field, value in vars(codec).items()}
    tensors[SHORTFALL] = torch.tensor(components.shortfall, dtype=torch.float64)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


class _Sums:
    """What one pass over the tokens collects: a regression a baseline, and the second moments of windows and tokens."""

    def __init__(self, dim: int, windows: Windows) -> None:
        self.dim, self.windows, self.width = dim, windows, windows.window_size * dim
        self.projections = {
            "pooling": averaging(dim, windows.window_size),
            "pixel_shuffle": shuffling(dim, windows.window_size),
        }
        self.of_cells = {name: Regression(dim, self.width) for name in (*self.projections, *SELECTIONS)}
        self.of_merged = {name: Regression(dim, dim, windows.token_grid**2) for name in MERGES}
        self.keeps_covariance = self.width <= MAX_COVARIANCE
        kept = self.width if self.keeps_covariance else 0
        self._window_square = torch.zeros(kept, kept, dtype=torch.float64)
        self._token_square = torch.zeros(dim, dim, dtype=torch.float64)

    def update(self, standardised_BNC: Tensor) -> None:
        members = self.windows.split(standardised_BNC).flatten(0, 1)
        flat = members.flatten(1)
        for name, weight in self.projections.items():
            self.of_cells[name].update((flat @ weight.T)[:, None], flat[:, None])
        for name, select in SELECTIONS.items():
            cells = select(standardised_BNC, self.windows)
            self.of_cells[name].update(cells.flatten(0, 1)[:, None], flat[:, None])
        for name, merge in MERGES.items():
            merged, groups = merge(standardised_BNC, self.windows.num_cells)
            self.of_merged[name].update(unmerge(merged, groups), standardised_BNC)
        tokens = members.flatten(0, 1)
        self._token_square += tokens.T @ tokens
        if self.keeps_covariance:
            self._window_square += flat.T @ flat

    @property
    def window_mean(self) -> Tensor:
        return self.of_cells["pooling"].out_mean[0]

    @property
    def window_covariance(self) -> Tensor:
        return self._window_square / self.of_cells["pooling"].count - torch.outer(self.window_mean, self.window_mean)

    @property
    def token_covariance(self) -> Tensor:
        pooling = self.of_cells["pooling"]
        mean = pooling.in_mean[0]
        return self._token_square / (pooling.count * self.windows.window_size) - torch.outer(mean, mean)


def _components(store: TokenStore, sums: _Sums) -> Components:
    if sums.keeps_covariance:
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


def _read(path: Path, store: TokenStore, windows: Windows) -> dict[str, Tensor]:
    advice = "remove it and it is computed again"
    try:
        with safe_open(path, framework="pt") as file:
            origin = (file.metadata() or {}).get("store")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise StoreError(f"{path}: damaged ({error}); {advice}") from error
    if origin != store.fingerprint:
        raise StoreError(f"{path}: was fitted on another store ({origin}); {advice}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    # Weights are not looked at: they stay on disk until they are used.
    if shapes != _shapes(store, windows) or not 0 <= float(tensors[SHORTFALL]) <= 1:
        raise StoreError(f"{path}: damaged (not the codecs of this grid); {advice}")
    return tensors


def _shapes(store: TokenStore, windows: Windows) -> dict[str, Shape]:
    dim, width = store.dim, store.dim * windows.window_size
    decoder: dict[str, Shape] = {"decode_weight": (width, dim), "decode_bias": (width,)}
    linear: dict[str, Shape] = {"encode_weight": (dim, width), "encode_bias": (dim,), **decoder}
    merging: dict[str, Shape] = {"weight": (dim, dim), "bias": (store.num_tokens, dim)}
    kinds = {**dict.fromkeys(LINEAR, linear), **dict.fromkeys(SELECTIONS, decoder), **dict.fromkeys(MERGES, merging)}
    return {SHORTFALL: ()} | {f"{name}.{field}": shape for name, kind in kinds.items() for field, shape in kind.items()}


def _assemble(tensors: Mapping[str, Tensor], store: TokenStore, windows: Windows) -> Fitted:
    fields = LinearCodec.__dataclass_fields__
    linear = {name: LinearCodec(*(tensors[f"{name}.{field}"] for field in fields)) for name in LINEAR}
    selecting = {name: (tensors[f"{name}.decode_weight"], tensors[f"{name}.decode_bias"]) for name in SELECTIONS}
    codecs: dict[str, Codec] = {
        **{name: partial(_run_linear, codec, windows) for name, codec in linear.items()},
        **{name: partial(_run_selection, SELECTIONS[name], windows, *found) for name, found in selecting.items()},
        **{
            name: MergeCodec(merge, windows.num_cells, tensors[f"{name}.weight"], tensors[f"{name}.bias"])
            for name, merge in MERGES.items()
        },
    }
    standardise = Standardise(store.dim, store.mean, store.scale)
    whole = {name: partial(_in_token_units, standardise, codecs[name]) for name in BASELINES}
    return Fitted(whole, linear, selecting, float(tensors[SHORTFALL]))


def _run_linear(codec: LinearCodec, windows: Windows, standardised: Tensor) -> tuple[Tensor, Tensor]:
    cells = codec.compress(standardised, windows)
    return cells, codec.decode(cells, windows)


def _run_selection(
    select: Callable[[Tensor, Windows], Tensor], windows: Windows, weight: Tensor, bias: Tensor, standardised: Tensor
) -> tuple[Tensor, Tensor]:
    cells = select(standardised, windows)
    return cells, decode_windows(cells, windows, weight, bias)


@torch.no_grad()
def _in_token_units(standardise: Standardise, codec: Codec, tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
    compressed, reconstructed = codec(standardise(tokens_BNC))
    return standardise.restore(compressed), standardise.restore(reconstructed)

"""What a fit of baselines computes, in one pass over the training sample: sums, then closed forms.

D = W*C is the width of a window.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor

from tokconv.evaluation.baselines.merging import unmerge
from tokconv.evaluation.baselines.pca import (
    MAX_PRODUCTS,
    Components,
    WindowMoments,
    exact_components,
    randomised_components,
    sampled_components,
)
from tokconv.evaluation.baselines.registry import BASELINES, Baseline, of_kind
from tokconv.evaluation.baselines.regression import Regression
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.store.sample import BATCH, MAX_IMAGES, standardised_batches, training_sample

PROJECTIONS, PCAS = of_kind("projection"), of_kind("pca")
SELECTIONS, MERGERS = of_kind("selection", "image_selection"), of_kind("merging")
LINEAR = of_kind("projection", "pca")
FITTED = of_kind("projection", "pca", "selection", "image_selection", "merging")
"""The baselines of this module."""
WINDOWS = "windows"
IN_WINDOWS = (BASELINES["pooling"], *PCAS)
"""The baselines that are fitted together, because they need the same moments; each of the others is by itself."""
SHORTFALL = "window_pca.shortfall"

FIT_VERSION = 3
"""Grows with every change of what a fit computes, so that files of older fits are not read."""
MAX_DECOMPOSED = 2560
"""Largest D at which the covariance is decomposed in full, exactly."""
MAX_COVARIANCE = 4096
"""Largest D at which the covariance is computed at all; above it components come from at most SVD_BYTES of windows."""
SVD_BYTES = 2**31

Step = Callable[[int], None]


def fit_part(store: TokenStore, output_grid: int, part: str, step: Step = lambda number: None) -> dict[str, Tensor]:
    """Fit a part on at most 2,048 training images (fixed seed): "NAME.FIELD" -> float32 tensor.

    Args:
        part: WINDOWS, or the name of another baseline of this module.
        step: called with the number of steps done.
    """
    windows, counted = Windows(store.token_grid, output_grid), itertools.count(1)

    def tick() -> None:
        step(next(counted))

    if part == WINDOWS:
        return _fit_windows(store, windows, tick)
    entry = BASELINES[part]
    return _fit_merging(store, windows, entry, tick) if entry in MERGERS else _fit_cells(store, windows, entry, tick)


def _fit_cells(store: TokenStore, windows: Windows, entry: Baseline, tick: Callable[[], None]) -> dict[str, Tensor]:
    """Fit the decoder of a projection or a selection."""
    regression, images = Regression(store.dim, windows.window_size * store.dim), training_sample(store)
    weight_CD = entry.function(store.dim, windows.window_size) if entry in PROJECTIONS else None
    for tokens, of in zip(standardised_batches(store, images), images.split(BATCH), strict=True):
        flat = windows.split(tokens).flatten(0, 1).flatten(1)
        if weight_CD is not None:
            cells = flat @ weight_CD.T
        else:
            cells = entry.function(tokens, windows, *((of,) if entry.reads_images else ())).flatten(0, 1)
        regression.update(cells[:, None], flat[:, None])
        tick()
    return _decoder(entry.name, regression) | ({} if weight_CD is None else _encoder(entry.name, weight_CD))


def _fit_merging(store: TokenStore, windows: Windows, entry: Baseline, tick: Callable[[], None]) -> dict[str, Tensor]:
    regression = Regression(store.dim, store.dim, store.num_tokens)
    for tokens in standardised_batches(store, training_sample(store)):
        merged, groups = entry.function(tokens, windows.num_cells)
        regression.update(unmerge(merged, groups), tokens)
        tick()
    weight, bias = regression.solve()
    return {f"{entry.name}.weight": weight.float(), f"{entry.name}.bias": bias.float()}


def _decoder(name: str, regression: Regression) -> dict[str, Tensor]:
    weight, bias = regression.solve()
    return {f"{name}.decode_weight": weight.float(), f"{name}.decode_bias": bias[0].float()}


def _encoder(name: str, weight_CD: Tensor) -> dict[str, Tensor]:
    return {f"{name}.encode_weight": weight_CD, f"{name}.encode_bias": torch.zeros(len(weight_CD))}


def _fit_windows(store: TokenStore, windows: Windows, tick: Callable[[], None]) -> dict[str, Tensor]:
    """Fit pooling and both window PCAs, which need the same moments."""
    sums, images = _WindowSums(store, windows), training_sample(store)
    for tokens, of in zip(standardised_batches(store, images), images.split(BATCH), strict=True):
        sums.update(tokens, of)
        tick()
    pooling = BASELINES["pooling"]
    tensors = _decoder(pooling.name, sums.pooling) | _encoder(
        pooling.name, pooling.function(store.dim, windows.window_size)
    )
    components = sums.components(tick)
    for entry in PCAS:
        codec = entry.function(components, sums.moments)
        tensors |= {f"{entry.name}.{field}": value for field, value in vars(codec).items()}
    return {**tensors, SHORTFALL: torch.tensor(components.shortfall, dtype=torch.float64)}


class _WindowSums:
    """What one pass over the tokens collects: second moments of windows and tokens, or a sample of windows."""

    def __init__(self, store: TokenStore, windows: Windows) -> None:
        self.windows, self.dim, self.width = windows, store.dim, windows.window_size * store.dim
        self.pooling = Regression(self.dim, self.width)
        self.has_covariance = self.width <= MAX_COVARIANCE
        side = self.width if self.has_covariance else 0
        self._window_square = torch.zeros(side, side, dtype=torch.float64)
        self._token_square = torch.zeros(self.dim, self.dim, dtype=torch.float64)
        most = max(1, SVD_BYTES // (4 * self.width * windows.num_cells))
        self._sampled = training_sample(store, 0 if self.has_covariance else min(MAX_IMAGES, most))
        self._sample, self._filled = torch.empty(len(self._sampled) * windows.num_cells, self.width), 0

    def update(self, standardised_BNC: Tensor, images_B: Tensor) -> None:
        """Add a batch of these images."""
        members_BKWC = self.windows.split(standardised_BNC)
        flat, tokens = members_BKWC.flatten(0, 1).flatten(1), members_BKWC.flatten(0, 2)
        self.pooling.update(members_BKWC.mean(2).flatten(0, 1)[:, None], flat[:, None])
        self._token_square += tokens.T @ tokens
        if self.has_covariance:
            self._window_square += flat.T @ flat
        kept = members_BKWC[torch.isin(images_B, self._sampled)].flatten(0, 1).flatten(1)
        self._sample[self._filled : self._filled + len(kept)] = kept
        self._filled += len(kept)

    @property
    def window_mean(self) -> Tensor:
        """[D] float64."""
        return self.pooling.out_mean[0]

    @property
    def moments(self) -> WindowMoments:
        """Moments that the two PCAs need in addition to the components."""
        mean = self.pooling.in_mean[0]
        covariance = self._token_square / (self.pooling.count * self.windows.window_size) - torch.outer(mean, mean)
        return WindowMoments(self.window_mean, mean, covariance, self.pooling.cross_covariance)

    def components(self, tick: Callable[[], None]) -> Components:
        """Return the leading components of the windows; the sample is used up."""
        if not self.has_covariance:
            return sampled_components(self._sample.sub_(self.window_mean.float()), self.dim, tick)
        covariance = self._window_square / self.pooling.count - torch.outer(self.window_mean, self.window_mean)
        if self.width <= MAX_DECOMPOSED:
            return exact_components(covariance, self.dim)
        return randomised_components(
            covariance.matmul, width=self.width, rank=self.width, dim=self.dim, dtype=torch.float64, progress=tick
        )


def num_steps(store: TokenStore, windows: Windows, part: str) -> int:
    """Return the steps of a fit: the batches of a pass and, at most, the products of a randomised PCA."""
    batches = -(-len(training_sample(store)) // BATCH)
    randomised = part == WINDOWS and windows.window_size * store.dim > MAX_DECOMPOSED
    return batches + (MAX_PRODUCTS if randomised else 0)

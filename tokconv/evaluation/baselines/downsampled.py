"""The baseline `downsampled`: the tower's tokens of smaller images, and the best affine decoder of them.

The tokens are read from what `tokconv.encoding.downsampled` stores beside the store; nothing is encoded here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.linear import decode_windows
from tokconv.evaluation.baselines.regression import Regression
from tokconv.evaluation.heldout import held_out
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.downsampled import DownsampledTokens
from tokconv.store.reader import TokenStore
from tokconv.store.sample import BATCH, standardised_batches, training_sample

FIT_VERSION = 1
"""Grows with every change of what a fit computes, so that files of older fits are not read."""


def needed_images(store: TokenStore) -> Tensor:
    """Return the images whose downsampled tokens a fit and the evaluation need: at most 4,096, ascending int64."""
    return torch.cat([training_sample(store), held_out(store)]).sort().values


def downsampled_codec(store: TokenStore, output_grid: int) -> Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return the codec on standardised tokens and their images; its decoder is fitted at the first call per store.

    Raises:
        StoreError: downsampled images were not encoded at this grid, or what is there is damaged.
    """
    windows, small = Windows(store.token_grid, output_grid), DownsampledTokens.find(store, output_grid)
    if small is None:
        raise StoreError(f"{store.path}: its images were not encoded at {output_grid}x{output_grid} patches")
    width = store.dim * windows.window_size
    decoder = computed_once(
        store,
        f"downsampled-decoder-v{FIT_VERSION}-grid-{output_grid:02d}.safetensors",
        lambda: _fit(store, windows, small),
        Tensors(),
        origin={"downsampled": small.small.fingerprint},
        check=has_shapes({"weight": (width, store.dim), "bias": (width,)}),
    )
    return partial(_run, store, windows, small, decoder["weight"], decoder["bias"])


def _fit(store: TokenStore, windows: Windows, small: DownsampledTokens) -> dict[str, Tensor]:
    regression, images = Regression(store.dim, store.dim * windows.window_size), training_sample(store)
    for tokens, of in zip(standardised_batches(store, images), images.split(BATCH), strict=True):
        cells = store.standardise(small.tokens(of)).flatten(0, 1)
        regression.update(cells[:, None], windows.split(tokens).flatten(2).flatten(0, 1)[:, None])
    weight, bias = regression.solve()
    return {"weight": weight.float(), "bias": bias[0].float()}


def _run(
    store: TokenStore,
    windows: Windows,
    small: DownsampledTokens,
    weight: Tensor,
    bias: Tensor,
    standardised_BNC: Tensor,
    images_B: Tensor,
) -> tuple[Tensor, Tensor]:
    cells = store.standardise(small.tokens(images_B).to(standardised_BNC.device))
    return cells, decode_windows(cells, windows, weight, bias)

"""How well a network tells compressed tokens from real ones: the figures auc_token, auc_token_white and auc_grid.

A real sample is one random token of each window, what an ideal compressor that returns real tokens would give. The
floors are the AUCs of a second such draw against the first.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.two_sample import JudgeSize, Sides, two_sample_auc
from tokconv.models.windows import Windows
from tokconv.store.cache import JsonFigures, Rows, Tensors, computed_once, has_shapes
from tokconv.store.covariance import token_moments
from tokconv.store.reader import TokenStore
from tokconv.store.sample import training_sample

TOKENS = JudgeSize(width=64, steps=600, batch=256, rate=1.5e-2)
WHITE = JudgeSize(width=64, steps=300, batch=256, rate=1e-2)
GRIDS = JudgeSize(width=32, steps=300, batch=32, rate=5e-3, muon_rate=0.03, scored=2048)
QUICK = JudgeSize(width=64, steps=100, batch=256, rate=1.5e-2, num_seeds=1)
GRID_TOKENS = 576
"""Tokens of each kind in a step of the judge of grids, which has at least 8 grids of each."""
SMALLEST_VARIANCE = 1e-6
"""Of a whitened direction, as a share of the largest: below it there is nothing but rounding."""
FIGURES = ("val/auc_token", "val/auc_token_white", "val/auc_grid")


def grid_size(num_cells: int) -> JudgeSize:
    """Return the judge of grids: it sees fewer of them per step if they are large."""
    return replace(GRIDS, batch=min(GRIDS.batch, max(8, GRID_TOKENS // num_cells)))


def enough_images(store: TokenStore) -> bool:
    """Return whether there are two-sample tests for a store."""
    return min(len(store.train_indices), len(store.val_indices)) >= protocol.MIN_TEST_IMAGES


def compared_images(store: TokenStore, held_out: Tensor, num_cells: int) -> tuple[Tensor, Tensor]:
    """Return the training and the held-out images whose compressed tokens are compared as samples, ascending int64."""
    most = max(1, min(protocol.MAX_TEST_IMAGES, protocol.MAX_TEST_VALUES // (num_cells * store.dim)))
    order = torch.randperm(len(held_out), generator=torch.Generator().manual_seed(protocol.SEED))[:most]
    return training_sample(store, most), held_out[order.sort().values]


class Collected:
    """The compressed tokens of chosen held-out images, [m, K, C], once all batches have passed."""

    def __init__(self, images: Tensor, num_cells: int, dim: int, device: torch.device) -> None:
        self._images, self._filled = images, 0
        self.values = torch.empty(len(images), num_cells, dim, device=device)

    def add(self, batch: Batch) -> None:
        """Add the next images."""
        mine = torch.isin(batch.images, self._images)
        found = batch.cells[mine.to(batch.cells.device)]
        self.values[self._filled : self._filled + len(found)] = found
        self._filled += len(found)


class TokenLikeness:
    """The two-sample tests of one store and output grid.

    Args:
        store: has enough images.
        windows: of the output grid.
        train, held_out: [n] and [m] int64, `compared_images`.
        device: where the judges learn.
    """

    def __init__(
        self, store: TokenStore, windows: Windows, train: Tensor, held_out: Tensor, device: torch.device
    ) -> None:
        self.store, self.windows, self.device = store, windows, device
        self.train, self.held_out = train, held_out

    def collect(self) -> Collected:
        """Return what collects the held-out side of a codec's tokens."""
        return Collected(self.held_out, self.windows.num_cells, self.store.dim, self.device)

    def figures(self, compressed: Sides) -> dict[str, float]:
        """Return the figures of compressed tokens, standardised, in the order of the images, and their floors."""
        return {**self._test(compressed), **self._floors}

    def _test(self, compressed: Sides) -> dict[str, float]:
        real, (offset, matrix) = self._real, self._whitening
        white = real.mapped(offset, matrix), compressed.mapped(offset, matrix)
        values = [
            two_sample_auc(real.tokens(), compressed.tokens(), TOKENS),
            two_sample_auc(white[0].tokens(), white[1].tokens(), WHITE),
            two_sample_auc(real, compressed, grid_size(self.windows.num_cells)),
        ]
        return dict(zip(FIGURES, values, strict=True))

    @cached_property
    def _floors(self) -> dict[str, float]:
        def measure() -> Rows:
            return {"floors": {f"{name}_floor": value for name, value in self._test(self._draw(1)).items()}}

        name = f"two-sample-p{protocol.PROTOCOL}-grid-{self.windows.output_grid:02d}.json"
        origin = {"protocol": protocol.PROTOCOL}
        return computed_once(self.store, name, measure, JsonFigures("figures"), origin=origin, check=_check)["floors"]

    @cached_property
    def _real(self) -> Sides:
        return self._draw(0)

    def _draw(self, number: int) -> Sides:
        """Return one real token of each window of each image; another number draws others."""
        generator = torch.Generator().manual_seed(protocol.SEED + number)
        return Sides(*(self._one_per_window(images, generator) for images in (self.train, self.held_out)))

    def _one_per_window(self, images: Tensor, generator: torch.Generator) -> Tensor:
        store = self.store
        cells = torch.empty(len(images), self.windows.num_cells, store.dim)
        numbers = torch.arange(store.num_tokens).expand(len(images), -1)[..., None]
        chosen = self.windows.sample(numbers, generator).expand(-1, -1, store.dim)
        done = 0
        for tokens in store.batches(images.split(heldout.BATCH)):
            part = slice(done, done + len(tokens))
            cells[part] = store.standardise(tokens.gather(1, chosen[part]))
            done += len(tokens)
        return cells.to(self.device)

    @cached_property
    def _whitening(self) -> tuple[Tensor, Tensor]:
        """Mean [C] and matrix [C, C]: (tokens - mean) @ matrix are uncorrelated with unit variance."""
        store = self.store
        # The same on every machine and for any number of threads, as the signs of computed eigenvectors are not.
        check = has_shapes({"mean": (store.dim,), "matrix": (store.dim, store.dim)})
        name = f"whitening-p{protocol.PROTOCOL}.safetensors"
        tensors = computed_once(store, name, lambda: whitening_of(*token_moments(store)), Tensors(), check=check)
        return tensors["mean"].to(self.device), tensors["matrix"].to(self.device)


def quick_auc(real_nC: Tensor, compressed_nC: Tensor, images_n: Tensor) -> float:
    """Return an AUC that held-out tokens alone can give: a single judge learns on every other image and is tested on
    the rest, and the other way round.

    Args:
        real_nC, compressed_nC: standardised tokens.
        images_n: [n] int64, which image each comes from, counted from 0.
    """
    even = images_n % 2 == 0
    values = []
    for train in (even, ~even):
        real, compressed = (Sides(part[train][:, None], part[~train][:, None]) for part in (real_nC, compressed_nC))
        values.append(two_sample_auc(real, compressed, QUICK))
    return sum(values) / 2


def whitening_of(mean: Tensor, covariance: Tensor) -> dict[str, Tensor]:
    """Return `mean` [C] and `matrix` [C, C], float32: after (tokens - mean) @ matrix the channels of tokens with these
    moments (float64) are uncorrelated, with variance 1."""
    variances, axes = torch.linalg.eigh(covariance)
    smallest = max(float(SMALLEST_VARIANCE * variances.max()), torch.finfo(torch.float32).tiny)
    return {"mean": mean.float(), "matrix": (axes / variances.clamp_min(smallest).sqrt()).float()}


def _check(rows: Rows) -> None:
    if set(rows.get("floors", {})) != {f"{name}_floor" for name in FIGURES}:
        raise ValueError("not the floors of the two-sample tests")

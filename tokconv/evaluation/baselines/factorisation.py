"""The baseline `own_factorisation`: the image's own low-rank factorisation, its rank chosen per store and grid.

`tokconv.models.factorisation` has the code itself, and the meaning of the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import fields, replace
from functools import partial

import torch
from torch import Tensor

from tokconv.evaluation.baselines.pca import (
    Components,
    exact_components,
    matching_map,
    randomised_components,
    sampled_components,
)
from tokconv.models.factorisation import (
    Factorisation,
    balanced_rank,
    check_rank,
    factored,
    highest_rank,
    num_local,
    num_shared,
)
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once
from tokconv.store.format import VIEW
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches, training_sample

FIT_VERSION = 4
"""Grows with every change of what a fit computes, so that files of older fits are not read."""
CHOICE_IMAGES = 240
"""Training images that the rank is chosen on; every tenth of them is held out for it."""
MAX_DECOMPOSED = 2560
"""Largest width of a window of [A | R] at which its covariance is decomposed in full."""
MAX_COVARIANCE = 4096
"""Largest width at which the covariance is computed at all; above it, the windows of random images are kept, at most
SAMPLE_BYTES of them."""
SAMPLE_BYTES = 2**31


def own_factorisation(store: TokenStore, output_grid: int, rank: int | None = None) -> Factorisation:
    """Return the factorisation of a store and grid, fitted at the first call.

    Args:
        rank: r; None chooses the best one.

    Raises:
        ConfigError: the rank is too high for the grid.
        StoreError: the file of the fit is damaged.
    """
    windows = Windows(store.token_grid, output_grid)
    if rank is not None:
        check_rank(rank, windows, store.dim)
    of_rank = "" if rank is None else f"-rank-{rank}"
    tensors = computed_once(
        store,
        f"own-factorisation-v{FIT_VERSION}-grid-{output_grid:02d}{of_rank}.safetensors",
        lambda: vars(fit_own_factorisation(store, windows, rank)),
        Tensors(),
        check=partial(_check, store.dim, windows),
    )
    return Factorisation(**tensors)


def fit_own_factorisation(store: TokenStore, windows: Windows, rank: int | None = None) -> Factorisation:
    """Choose the rank on a held-out tenth of the training images unless it is given; fit on all of at most 2,048."""
    images = training_sample(store)
    axes = principal_axes(store, images)
    return fit_rank(store, images, windows, axes, chosen_rank(store, windows, axes) if rank is None else rank)


def candidate_ranks(windows: Windows, dim: int) -> list[int]:
    """Return the ranks that are tried: 0, and from 1 to beyond r0, at which mean, A and B take K*C numbers."""
    balanced = balanced_rank(windows, dim)
    tried = {0, 1, round(balanced / 2), int(balanced), int(1.2 * balanced) + 1}
    return sorted(rank for rank in tried if rank <= highest_rank(windows, dim))


def chosen_rank(store: TokenStore, windows: Windows, axes: Tensor) -> int:
    """Return the candidate of least squared error on the held-out tenth; of equals, the lowest."""
    ranks, images = candidate_ranks(windows, store.dim), training_sample(store, CHOICE_IMAGES)
    of_images = [store.keys[index].partition(VIEW)[0] for index in images.tolist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(of_images))}
    is_held_out = torch.tensor([numbers[name] % 10 == 9 for name in of_images])
    if len(ranks) == 1 or not is_held_out.any():
        return 0
    errors = {}
    for rank in ranks:
        code, error = _fit_code(store, images[~is_held_out], windows, axes, rank), 0.0
        for tokens in standardised_batches(store, images[is_held_out]):
            error += float((code.decode(code.encode(tokens, windows), windows) - tokens).square().sum())
        errors[rank] = error
    return min(ranks, key=lambda rank: errors[rank])


def principal_axes(store: TokenStore, images: Tensor) -> Tensor:
    """Return the principal directions of standardised tokens in columns, strongest first, [C, C] float32."""
    square = torch.zeros(store.dim, store.dim, dtype=torch.float64)
    for tokens in standardised_batches(store, images):
        rows = tokens.flatten(0, 1)
        square += rows.T @ rows
    return torch.linalg.eigh(square)[1].flip(1).float().contiguous()


def fit_rank(store: TokenStore, images: Tensor, windows: Windows, axes: Tensor, rank: int) -> Factorisation:
    """Fit the code of one rank on these images, in two passes: window PCA of [A | R], then the moments of the codes."""
    code, moments = _fit_code(store, images, windows, axes, rank), _CodeMoments(store.dim)
    for tokens in standardised_batches(store, images):
        moments.update(code.codes(tokens, windows), windows.split(tokens).mean(2), tokens)
    return moments.matched(code)


def _fit_code(store: TokenStore, images: Tensor, windows: Windows, axes: Tensor, rank: int) -> Factorisation:
    """Fit the code without its map to cells that look like tokens, which changes no error."""
    sums = _Windows(len(images), windows, rank, store.dim)
    for tokens in standardised_batches(store, images):
        sums.update(tokens @ axes)
    identity, zero = torch.eye(store.dim), torch.zeros(store.dim)
    return Factorisation(
        axes=axes,
        window_mean=sums.mean.float(),
        window_basis=sums.components(num_local(rank, store.dim, windows.num_cells)).basis.float().contiguous(),
        shared_mean=sums.shared_mean.float(),
        shared_scale=sums.shared_scale.float(),
        encode_weight=identity,
        encode_bias=zero,
        decode_weight=identity,
        decode_bias=zero,
    )


class _Windows:
    """What the first pass collects: moments of windows of [A | R], or a sample of them, and of what cells share."""

    def __init__(self, num_images: int, windows: Windows, rank: int, dim: int) -> None:
        self.windows, self.rank, self.dim = windows, rank, dim
        self.width = windows.window_size * (rank + dim)
        self.has_covariance = self.width <= MAX_COVARIANCE
        side = self.width if self.has_covariance else 0
        self.count, self._sum = 0, torch.zeros(self.width, dtype=torch.float64)
        self._square = torch.zeros(side, side, dtype=torch.float64)
        most = 0 if self.has_covariance else max(1, SAMPLE_BYTES // (4 * self.width * windows.num_cells))
        # Images are often stored class by class, so that the first of them are no sample.
        chosen = torch.randperm(num_images, generator=torch.Generator().manual_seed(0))[:most]
        self._is_kept = torch.zeros(num_images, dtype=torch.bool).index_fill(0, chosen, value=True)
        self._sample, self._sampled = torch.empty(len(chosen) * windows.num_cells, self.width), 0
        self.images = 0
        self._shared, self._shared_square = torch.zeros(2, num_shared(rank, dim), dtype=torch.float64)

    def update(self, tokens_BNC: Tensor) -> None:
        """Add a batch, in the axes of the factorisation."""
        parts = factored(tokens_BNC, self.windows, self.rank)
        rows = parts.rows.flatten(0, 1)
        if self.has_covariance:
            self._square += rows.T @ rows
        else:
            kept = parts.rows[self._is_kept[self.images : self.images + len(tokens_BNC)]].flatten(0, 1)
            self._sample[self._sampled : self._sampled + len(kept)] = kept
            self._sampled += len(kept)
        self._sum += rows.sum(0, dtype=torch.float64)
        self.count += len(rows)
        self.images += len(tokens_BNC)
        if self.rank:
            shared = torch.cat([parts.outside, parts.directions], 1).flatten(1).double()
            self._shared += shared.sum(0)
            self._shared_square += shared.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """The mean window, [D] float64."""
        return self._sum / self.count

    @property
    def shared_mean(self) -> Tensor:
        """[F] float64."""
        return self._shared / self.images

    @property
    def shared_scale(self) -> Tensor:
        """[F] float64: the deviation, but not less than a hundredth of the largest one."""
        deviation = (self._shared_square / self.images - self.shared_mean.square()).clamp_min(0).sqrt()
        return deviation if not len(deviation) else deviation.clamp_min(max(1e-6, 0.01 * float(deviation.max())))

    def components(self, wanted: int) -> Components:
        """Return the leading components of the windows, [D, m]."""
        if self.has_covariance:
            covariance = self._square / self.count - torch.outer(self.mean, self.mean)
            if self.width <= MAX_DECOMPOSED:
                return exact_components(covariance, wanted)
            return randomised_components(
                covariance.matmul, width=self.width, rank=self.width, dim=wanted, dtype=torch.float64
            )
        return sampled_components(self._sample.sub_(self.mean.float()), wanted)


class _CodeMoments:
    """What the second pass collects: moments of codes, of tokens, and of codes with pooled tokens."""

    def __init__(self, dim: int) -> None:
        self.codes, self.tokens = 0, 0
        self._code, self._token, self._pooled = torch.zeros(3, dim, dtype=torch.float64)
        self._code_square, self._token_square, self._cross = torch.zeros(3, dim, dim, dtype=torch.float64)

    def update(self, codes_BKC: Tensor, pooled_BKC: Tensor, tokens_BNC: Tensor) -> None:
        """Add a batch."""
        code, pooled, token = codes_BKC.flatten(0, 1), pooled_BKC.flatten(0, 1), tokens_BNC.flatten(0, 1)
        self.codes, self.tokens = self.codes + len(code), self.tokens + len(token)
        self._code += code.sum(0, dtype=torch.float64)
        self._pooled += pooled.sum(0, dtype=torch.float64)
        self._token += token.sum(0, dtype=torch.float64)
        self._code_square += code.T @ code
        self._token_square += token.T @ token
        self._cross += pooled.T @ code

    def matched(self, code: Factorisation) -> Factorisation:
        """Return the code in coordinates with the tokens' moments, as matched window PCA is."""
        mean, token_mean, pooled = self._code / self.codes, self._token / self.tokens, self._pooled / self.codes
        forward, back = matching_map(
            self._token_square / self.tokens - torch.outer(token_mean, token_mean),
            self._code_square / self.codes - torch.outer(mean, mean),
            self._cross / self.codes - torch.outer(pooled, mean),
        )
        return replace(
            code,
            encode_weight=forward.float(),
            encode_bias=(token_mean - forward @ mean).float(),
            decode_weight=back.float(),
            decode_bias=(mean - back @ token_mean).float(),
        )


def _check(dim: int, windows: Windows, tensors: Mapping[str, Tensor]) -> None:
    """Raise ValueError unless these are the tensors of a factorisation of some rank."""
    if tensors.keys() != {field.name for field in fields(Factorisation)}:
        raise ValueError("tensors are missing or unknown")
    rank = Factorisation(**tensors).rank
    local, shared, width = num_local(rank, dim, windows.num_cells), num_shared(rank, dim), rank + dim
    square = dict.fromkeys(("axes", "encode_weight", "decode_weight"), (dim, dim))
    wanted = {
        **square,
        "encode_bias": (dim,),
        "decode_bias": (dim,),
        "window_mean": (windows.window_size * width,),
        "window_basis": (windows.window_size * width, local),
        "shared_mean": (shared,),
        "shared_scale": (shared,),
    }
    if any(tuple(tensors[name].shape) != shape for name, shape in wanted.items()):
        raise ValueError("tensors are of another shape")


def factorisation_codec(store: TokenStore, output_grid: int) -> Callable[[Tensor], tuple[Tensor, Tensor]]:
    """Return the codec on standardised tokens, fitted at the first call per store."""
    return partial(_run, own_factorisation(store, output_grid), Windows(store.token_grid, output_grid))


def _run(code: Factorisation, windows: Windows, standardised_BNC: Tensor) -> tuple[Tensor, Tensor]:
    cells = code.encode(standardised_BNC, windows)
    return cells, code.decode(cells, windows)

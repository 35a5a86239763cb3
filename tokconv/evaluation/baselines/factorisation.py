"""The baseline `own_factorisation`: the image's own low-rank factorisation, its rank chosen per store and grid.

`tokconv.models.factorisation` has the code itself, and the meaning of the shapes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from functools import partial
from itertools import zip_longest

import torch
from torch import Tensor

from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.evaluation.baselines.pca import matching_map
from tokconv.evaluation.baselines.window_components import (
    COORDINATES_PER_COMPONENT,
    PER_COMPONENT_IN_A_CHOICE,
    WindowComponents,
)
from tokconv.models.factorisation import (
    Factored,
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

FIT_VERSION = 7
"""Grows with every change of what a fit computes, so that files of older fits are not read."""
CHOICE_IMAGES = 120
"""Training images that the rank is chosen on at first; every tenth of them is held out for it."""
CLOSE = 1.15
"""Up to this ratio of errors, few images favour a high rank, which has fewer components to learn: all of them decide
between it and window PCA."""
COORDINATE_IMAGES = 64
"""Training images whose windows choose the coordinates in which components are computed."""


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
    ranks = candidate_ranks(windows, store.dim)
    if len(ranks) == 1:
        return 0
    errors = held_out_errors(store, windows, axes, ranks, training_sample(store, CHOICE_IMAGES))
    best = min(ranks, key=lambda rank: errors[rank])
    if best and errors[0] <= CLOSE * errors[best]:
        errors = held_out_errors(store, windows, axes, [0, best], training_sample(store))
        best = min((0, best), key=lambda rank: errors[rank])
    return best


def held_out_errors(
    store: TokenStore, windows: Windows, axes: Tensor, ranks: Sequence[int], images: Tensor
) -> dict[int, float]:
    """Return the squared error of each rank on every tenth of these images, fitted on the others; views of an image
    stay together. Too few images to hold any out have no errors."""
    of_images = [store.keys[index].partition(VIEW)[0] for index in images.tolist()]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(of_images))}
    is_held_out = torch.tensor([numbers[name] % 10 == 9 for name in of_images])
    errors = dict.fromkeys(ranks, 0.0)
    for rank in ranks if is_held_out.any() else ():
        code = _fit_code(_Passes(store, images[~is_held_out], windows, axes, rank), PER_COMPONENT_IN_A_CHOICE)
        for tokens in standardised_batches(store, images[is_held_out]):
            errors[rank] += float((code.decode(code.encode(tokens, windows), windows) - tokens).square().sum())
    return errors


def principal_axes(store: TokenStore, images: Tensor) -> Tensor:
    """Return the principal directions of standardised tokens in columns, strongest first, [C, C] float32."""
    square = torch.zeros(store.dim, store.dim, dtype=torch.float64)
    for tokens in standardised_batches(store, images):
        rows = tokens.flatten(0, 1)
        square += rows.T @ rows
    return torch.linalg.eigh(square)[1].flip(1).float().contiguous()


def fit_rank(store: TokenStore, images: Tensor, windows: Windows, axes: Tensor, rank: int) -> Factorisation:
    """Fit the code of one rank on these images, in two passes: window PCA of [A | R], then the moments of the codes.

    At rank 0 the first pass is the store's own window PCA.
    """
    passes = _Passes(store, images, windows, axes, rank)
    code = _fit_code(passes) if rank else _window_pca(store, windows, axes)
    moments = _CodeMoments(store.dim)
    for tokens, parts in passes:
        moments.update(code.pack(*code.numbers(parts, windows)), windows.split(tokens).mean(2), tokens)
    return moments.matched(code)


class _Passes:
    """Passes over the tokens of some images, which yield them standardised and factored, batch by batch.

    Every second pass takes the directions that the first one found: finding them is half of its time.
    """

    def __init__(self, store: TokenStore, images: Tensor, windows: Windows, axes: Tensor, rank: int) -> None:
        self.store, self.images, self.windows, self.axes, self.rank = store, images, windows, axes, rank
        self._directions: list[Tensor] = []

    def __iter__(self) -> Iterator[tuple[Tensor, Factored]]:
        known, self._directions = self._directions, []
        batches = zip_longest(standardised_batches(self.store, self.images), known)
        for tokens, directions in batches:
            parts = factored(tokens @ self.axes, self.windows, self.rank, directions)
            self._directions.append(parts.directions)
            yield tokens, parts

    def sample(self) -> Tensor:
        """Return the windows of COORDINATE_IMAGES images."""
        # Images are often stored class by class, so that the first of them are no sample.
        chosen = torch.randperm(len(self.images), generator=torch.Generator().manual_seed(0))[:COORDINATE_IMAGES]
        few = _Passes(self.store, self.images[chosen].sort().values, self.windows, self.axes, self.rank)
        return torch.cat([_windows(parts, self.windows) for _, parts in few])


def _fit_code(passes: _Passes, per_component: int = COORDINATES_PER_COMPONENT) -> Factorisation:
    """Fit the code without its map to cells that look like tokens, which changes no error."""
    rank, dim, windows = passes.rank, passes.store.dim, passes.windows
    components = WindowComponents(passes.sample(), num_local(rank, dim, windows.num_cells), per_component)
    shared = _Shared(rank, dim)
    for _, parts in passes:
        components.update(_windows(parts, windows))
        shared.update(parts)
    return _unmatched(passes.axes, components.mean, components.basis(), shared.mean, shared.scale)


def _window_pca(store: TokenStore, windows: Windows, axes: Tensor) -> Factorisation:
    """Return the code of rank 0: the components of window PCA, in the axes of the factorisation."""
    pca = fitted_baselines(store, windows.output_grid).linear["window_pca"]
    split = (windows.window_size, store.dim)
    mean = (pca.decode_bias.unflatten(0, split) @ axes).flatten()
    basis = torch.einsum("wcm,cd->wdm", pca.decode_weight.unflatten(0, split), axes).flatten(0, 1)
    none = torch.zeros(0)
    return _unmatched(axes, mean, basis, none, none)


def _unmatched(axes: Tensor, mean: Tensor, basis: Tensor, shared_mean: Tensor, shared_scale: Tensor) -> Factorisation:
    identity, zero = torch.eye(len(axes)), torch.zeros(len(axes))
    return Factorisation(
        axes=axes,
        window_mean=mean.float(),
        window_basis=basis.float().contiguous(),
        shared_mean=shared_mean.float(),
        shared_scale=shared_scale.float(),
        encode_weight=identity,
        encode_bias=zero,
        decode_weight=identity,
        decode_bias=zero,
    )


def _windows(parts: Factored, windows: Windows) -> Tensor:
    """Return the windows of [A | R], [B K, W, r + C]."""
    return parts.rows.flatten(0, 1).unflatten(1, (windows.window_size, -1))


class _Shared:
    """What the first pass collects of the numbers that cells share."""

    def __init__(self, rank: int, dim: int) -> None:
        self.images = 0
        self._sum, self._square = torch.zeros(2, num_shared(rank, dim), dtype=torch.float64)

    def update(self, parts: Factored) -> None:
        """Add a batch."""
        self.images += len(parts.mean)
        if len(self._sum):
            shared = torch.cat([parts.outside, parts.directions], 1).flatten(1).double()
            self._sum += shared.sum(0)
            self._square += shared.square().sum(0)

    @property
    def mean(self) -> Tensor:
        """[F] float64."""
        return self._sum / self.images

    @property
    def scale(self) -> Tensor:
        """[F] float64: the deviation, but not less than a hundredth of the largest one."""
        deviation = (self._square / self.images - self.mean.square()).clamp_min(0).sqrt()
        return deviation if not len(deviation) else deviation.clamp_min(max(1e-6, 0.01 * float(deviation.max())))


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

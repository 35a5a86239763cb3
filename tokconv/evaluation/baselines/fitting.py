"""The baselines of a grid that are fitted in one pass over the training sample, in parts: what is asked for is fitted,
and stored next to the token store.

D = W*C is the width of a window.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from typing import TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation.baselines.fits import (
    FIT_VERSION,
    FITTED,
    IN_WINDOWS,
    LINEAR,
    MERGERS,
    PCAS,
    SHORTFALL,
    WINDOWS,
    Step,
    fit_part,
    num_steps,
)
from tokconv.evaluation.baselines.linear import LinearCodec, decode_windows
from tokconv.evaluation.baselines.merging import Merge, unmerge
from tokconv.evaluation.baselines.registry import BASELINES, Baseline
from tokconv.evaluation.codecs import Codec, ImageCodec
from tokconv.models.blocks import Standardise
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore
from tokconv.store.sample import check_varied

Select = Callable[..., Tensor]
Run = Callable[..., tuple[Tensor, Tensor]]
"""As a codec, but on standardised tokens; it takes the images as second argument if the baseline reads them."""
Shape = tuple[int, ...]
T = TypeVar("T")


class FittedBaselines:
    """These baselines of one store and grid; each is fitted, or read, when it is asked for.

    Attributes:
        codecs: by name, on the CPU.
        linear: those that are affine on both sides, on standardised tokens: they can fill the networks' window
            projections.
    """

    def __init__(self, store: TokenStore, output_grid: int) -> None:
        self._store, self._windows = store, Windows(store.token_grid, output_grid)
        self.codecs: Mapping[str, Codec | ImageCodec] = _OnDemand([entry.name for entry in FITTED], self._codec)
        self.linear: Mapping[str, LinearCodec] = _OnDemand([entry.name for entry in LINEAR], self._linear)

    @property
    def pca_shortfall(self) -> float:
        """`tokconv.evaluation.baselines.pca.Components.shortfall` of both window PCAs."""
        return float(_tensors_of(self._store, self._windows, PCAS[0])[SHORTFALL])

    def _own(self, entry: Baseline) -> dict[str, Tensor]:
        tensors = _tensors_of(self._store, self._windows, entry)
        return {field: tensors[f"{entry.name}.{field}"] for field in _fields(self._store, self._windows, entry)}

    def decoder(self, name: str) -> tuple[Tensor, Tensor]:
        """Return weight [W*C, C] and bias [W*C] of a baseline's decoder, from a standardised cell to its window."""
        own = self._own(BASELINES[name])
        return own["decode_weight"], own["decode_bias"]

    def _linear(self, name: str) -> LinearCodec:
        return LinearCodec(**self._own(BASELINES[name]))

    def _codec(self, name: str) -> Codec | ImageCodec:
        entry, windows = BASELINES[name], self._windows
        own = self._own(entry)
        run: Run
        if entry in LINEAR:
            run = partial(_run_linear, LinearCodec(**own), windows)
        elif entry in MERGERS:
            run = partial(_run_merging, entry.function, windows.num_cells, **own)
        else:
            run = partial(_run_selection, entry.function, windows, **own)
        return codec_in_token_units(self._store, entry, run)


class _OnDemand(Mapping[str, T]):
    """Values that are made when they are asked for."""

    def __init__(self, names: Sequence[str], make: Callable[[str], T]) -> None:
        self._names, self._make = names, make

    def __getitem__(self, name: str) -> T:
        if name not in self._names:
            raise KeyError(name)
        return self._make(name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def fitted_baselines(store: TokenStore, output_grid: int) -> FittedBaselines:
    """Return these baselines of a grid. What is asked for is fitted once per store (one process fits, others wait).

    Raises:
        ConfigError: the grid is not in 1..G.
        StoreError: the store has no training images or no variance; and, where a baseline is asked for, the file of its
            fit is damaged.

    Example:
        >>> compressed, reconstructed = fitted_baselines(store, 6).codecs["tome"](tokens)    # doctest: +SKIP
    """
    fitted = FittedBaselines(store, output_grid)
    check_fittable(store)
    return fitted


def check_fittable(store: TokenStore) -> None:
    """Raise StoreError if a store has no training images, or no variance."""
    if not len(store.train_indices):
        raise StoreError(f"{store.path}: no training images to fit baselines on; encode more of them")
    check_varied(store)


def fit_together(
    store: TokenStore, output_grid: int, names: Iterable[str], progress: Callable[[int, int, str], None]
) -> int:
    """Fit those of these baselines that are fitted in this module and not yet stored; return the number of steps.

    Args:
        progress: called with steps done, their number and what is fitted.
    """
    windows = Windows(store.token_grid, output_grid)
    parts = {_part(BASELINES[name]): BASELINES[name] for name in names if BASELINES[name] in FITTED}
    missing = {part: entry for part, entry in parts.items() if not _is_stored(store, windows, part)}
    each = {part: num_steps(store, windows, part) for part in missing}
    done, total = 0, sum(each.values())
    for part, entry in missing.items():
        what = f"fit of {', '.join(other.title for other in _members(part))}"

        def step(number: int, first: int = done, most: int = each[part], what: str = what) -> None:
            progress(first + min(number, most), total, what)

        progress(done, total, what)
        _tensors_of(store, windows, entry, step)
        done += each[part]
        progress(done, total, what)
    return total


def _part(entry: Baseline) -> str:
    return WINDOWS if entry in IN_WINDOWS else entry.name


def _members(part: str) -> tuple[Baseline, ...]:
    return IN_WINDOWS if part == WINDOWS else (BASELINES[part],)


def _file_names(windows: Windows, part: str) -> tuple[str, str]:
    """Return the file of a part, and that in which older versions stored all of them."""
    end = f"v{FIT_VERSION}-grid-{windows.output_grid:02d}.safetensors"
    return f"codec-{part}-{end}", f"codecs-{end}"


def _is_stored(store: TokenStore, windows: Windows, part: str) -> bool:
    return any((store.derived_dir / name).is_file() for name in _file_names(windows, part))


def _tensors_of(
    store: TokenStore, windows: Windows, entry: Baseline, step: Step = lambda number: None
) -> Mapping[str, Tensor]:
    """Return at least the tensors of a baseline; its part is fitted if it is not stored."""
    part = _part(entry)
    name, older = _file_names(windows, part)
    own, is_older = store.derived_dir / name, (store.derived_dir / older).is_file()
    if is_older and not own.is_file():
        name, members = older, FITTED
    else:
        members = _members(part)
    return computed_once(
        store,
        name,
        lambda: fit_part(store, windows.output_grid, part, step),
        Tensors(),
        check=partial(_check_tensors, store, windows, members),
    )


def _check_tensors(
    store: TokenStore, windows: Windows, members: tuple[Baseline, ...], tensors: Mapping[str, Tensor]
) -> None:
    shapes: dict[str, Shape] = {SHORTFALL: ()} if PCAS[0] in members else {}
    for entry in members:
        shapes |= {f"{entry.name}.{field}": shape for field, shape in _fields(store, windows, entry).items()}
    has_shapes(shapes)(tensors)
    if SHORTFALL in shapes and not 0 <= float(tensors[SHORTFALL]) <= 1:
        raise ValueError(f"{SHORTFALL} is not a share")


def _fields(store: TokenStore, windows: Windows, entry: Baseline) -> dict[str, Shape]:
    """Return the tensors of a baseline by name, with their shapes."""
    dim, width = store.dim, store.dim * windows.window_size
    if entry in MERGERS:
        return {"weight": (dim, dim), "bias": (store.num_tokens, dim)}
    encoder: dict[str, Shape] = {"encode_weight": (dim, width), "encode_bias": (dim,)} if entry in LINEAR else {}
    return {**encoder, "decode_weight": (width, dim), "decode_bias": (width,)}


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

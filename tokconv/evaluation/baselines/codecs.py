"""Any baseline of a store by its name: which of them the store has, and their codecs, fitted when asked for."""

from __future__ import annotations

import copy
import dataclasses
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from tokconv.evaluation.baselines import downsampled, factorisation, fits, fitting
from tokconv.evaluation.baselines.registry import BASELINES, Baseline, Kind
from tokconv.evaluation.codecs import Codec, ImageCodec
from tokconv.store.downsampled import DownsampledTokens
from tokconv.store.reader import TokenStore

T = TypeVar("T")
_VERSIONS: dict[Kind, int] = {"factorisation": factorisation.FIT_VERSION, "stored": downsampled.FIT_VERSION}


def available(store: TokenStore, output_grid: int) -> tuple[Baseline, ...]:
    """Return the baselines that a store has at a grid: all, or all but the downsampled images.

    Raises:
        StoreError: the downsampled images are damaged.
    """
    encoded = DownsampledTokens.find(store, output_grid) is not None
    return tuple(entry for entry in BASELINES.values() if encoded or entry.kind != "stored")


def fit_version(baseline: Baseline) -> int:
    """Return the version of a baseline's fit, which grows with every change of what it computes."""
    return _VERSIONS.get(baseline.kind, fits.FIT_VERSION)


def baseline_codec(store: TokenStore, output_grid: int, name: str) -> Codec | ImageCodec:
    """Return the codec of a baseline, on the CPU; its fit is computed at the first call per store and grid.

    Raises:
        ConfigError: there is no such baseline, or the grid is not in 1..G.
        StoreError: the store has no training images, no downsampled images for the baseline that reads them, or what
            was computed before is damaged.

    Example:
        >>> compressed, reconstructed = baseline_codec(store, 6, "tome")(tokens)     # doctest: +SKIP
    """
    baseline = BASELINES[name]
    if baseline in fits.FITTED:
        return fitting.fitted_baselines(store, output_grid).codecs[name]
    fitting.check_fittable(store)
    return fitting.codec_in_token_units(store, baseline, baseline.function(store, output_grid))


def on_device(codec: T, device: torch.device) -> T:
    """Return a copy of a baseline's codec with its tensors on a device, for tokens that are there."""
    found: T = _moved(codec, device)
    return found


def _moved(part: Any, device: torch.device) -> Any:
    """Return a part of a codec on a device: its tensors, modules, and what partial functions and dataclasses hold."""
    if isinstance(part, Tensor):
        return part.to(device)
    if isinstance(part, nn.Module):
        return copy.deepcopy(part).to(device)
    if isinstance(part, partial):
        named = {name: _moved(value, device) for name, value in part.keywords.items()}
        return partial(_moved(part.func, device), *(_moved(value, device) for value in part.args), **named)
    if dataclasses.is_dataclass(part) and not isinstance(part, type):
        values = {field.name: getattr(part, field.name) for field in dataclasses.fields(part) if field.init}
        return dataclasses.replace(part, **{name: _moved(value, device) for name, value in values.items()})
    return part

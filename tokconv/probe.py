"""A linear probe: can the class of an image still be read from its reconstructed tokens?

Ridge regression to one-hot labels on the uncompressed, standardised training tokens, solved in its dual form (as many
unknowns as images); the ridge minimises the leave-one-out error of the training split. Trained once per store, never
on reconstructions, so what it loses on them is what compression lost.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokconv.baselines import standardised_batches, training_sample
from tokconv.errors import StoreError
from tokconv.files import atomic_path
from tokconv.grid import Windows
from tokconv.store import TokenStore

FIT_VERSION = 1
MAX_FEATURES = 40_000
RIDGES = tuple(10.0**power for power in range(-5, 2))
"""Tried ridges, as multiples of the Gram matrix's mean eigenvalue."""


@dataclass(frozen=True)
class Probe:
    """Affine classifier on tokens averaged to a grid of at most 40,000 features.

    weight [F, classes], bias [classes]; float32.
    """

    weight: Tensor
    bias: Tensor
    windows: Windows

    def predict(self, standardised_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B] int64, the class of each image."""
        features = self.windows.split(standardised_BNC).mean(2).flatten(1)
        return (features @ self.weight.to(features.device) + self.bias.to(features.device)).argmax(1)


def fit_probe(store: TokenStore) -> Probe:
    """The store's probe, from its cache or fitted now. Raises StoreError when no training image has a label."""
    if store.labels is None or not len(labelled_sample(store)):
        raise StoreError(f"{store.path}: no labels, so no probe")
    windows = Windows(store.token_grid, _probe_grid(store.token_grid, store.dim))
    path = store.derived_dir / f"probe-v{FIT_VERSION}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            weight, bias = _solve(store, windows, store.labels)
            with atomic_path(path) as temporary:
                save_file({"weight": weight.contiguous(), "bias": bias.contiguous()}, temporary)
        tensors = load_file(path)
    return Probe(tensors["weight"], tensors["bias"], windows)


def labelled_sample(store: TokenStore) -> Tensor:
    """The training indices that the probe is fitted on: those of `training_sample` that have a class."""
    sample = training_sample(store)
    return sample[:0] if store.labels is None else sample[store.labels[sample] >= 0]


def _probe_grid(token_grid: int, dim: int) -> int:
    return max(1, min(token_grid, math.isqrt(MAX_FEATURES // dim)))


def _solve(store: TokenStore, windows: Windows, labels: Tensor) -> tuple[Tensor, Tensor]:
    sample = labelled_sample(store)
    features = torch.cat([windows.split(t).mean(2).flatten(1) for t in standardised_batches(store, sample)])
    targets = F.one_hot(labels[sample], len(store.class_names)).double()
    center, target_mean = features.mean(0), targets.mean(0)
    features -= center
    values, vectors = torch.linalg.eigh((features @ features.T).double())
    rotated = vectors.T @ (targets - target_mean)
    best: tuple[float, Tensor] | None = None
    for ridge in RIDGES:
        shrink = 1 / (values.clamp_min(0) + ridge * values.mean())
        dual = vectors @ (shrink[:, None] * rotated)
        left_out = dual / (vectors.square() @ shrink)[:, None]
        error = float(left_out.square().mean())
        if best is None or error < best[0]:
            best = (error, dual)
    assert best is not None
    weight = features.T @ best[1].float()
    return weight, target_mean.float() - center @ weight

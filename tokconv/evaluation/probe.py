"""A linear probe: can the class of an image still be read from its reconstructed tokens, or from its compressed tokens?

Ridge regression to one-hot labels on the uncompressed, standardised training tokens, solved in its dual form (as many
unknowns as images); the ridge minimises the leave-one-out error of the training split. Trained once per store, never on
reconstructions, so whatever accuracy it loses on them was lost by compression.

Given compressed tokens, it is the frozen reader: each compressed token stands for all tokens of its window. It is not
trained on them, so it reads only tokens well that still look like real tokens and mean the same.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from operator import itemgetter

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.models.windows import Windows
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches, training_sample

FIT_VERSION = 2
MAX_FEATURES = 40_000
RIDGES = tuple(10.0**power for power in range(-5, 2))
"""Candidate ridges, as multiples of the Gram matrix's mean eigenvalue."""


@dataclass(frozen=True)
class Probe:
    """Affine classifier on tokens averaged to a grid of at most 40,000 features.

    weight [F, classes], bias [classes]; float32.
    """

    weight: Tensor
    bias: Tensor
    windows: Windows

    def predict(self, standardised_BNC: Tensor) -> Tensor:
        """Classify images, [B, N, C] -> [B] int64; tokens and weights are on one device."""
        tokens = self.windows.split(standardised_BNC)
        # A mean over windows of one token would copy every value.
        tokens = tokens.squeeze(2) if tokens.shape[2] == 1 else tokens.mean(2)
        return _classes(tokens.flatten(1), self.weight, self.bias)

    def to(self, device: torch.device) -> Probe:
        """Return the probe with its weights on a device."""
        return Probe(self.weight.to(device), self.bias.to(device), self.windows)

    def reader(self, windows: Windows) -> Reader:
        """Return the same classifier for the compressed tokens of these windows, on the device of the weights."""
        one_hot = torch.eye(windows.num_cells)[None, :, None].expand(-1, -1, windows.window_size, -1)
        shares = self.windows.split(windows.join(one_hot)).mean(2)[0].to(self.weight.device)
        return Reader(shares, self.weight.unflatten(0, (len(shares), -1)), self.bias)


class Reader:
    """A probe that reads each compressed token as if it were all tokens of its window.

    Args:
        shares_PK: the share of each of the K compressed tokens in each of the probe's P averaged tokens.
        weight_PCc: the probe's, by averaged token and channel, for each class c.
        bias_c: the probe's.
    """

    def __init__(self, shares_PK: Tensor, weight_PCc: Tensor, bias_c: Tensor) -> None:
        # Spreading is linear: if there are fewer cells than averaged tokens, it is applied once, to the weights.
        self._spread = shares_PK if shares_PK.shape[1] >= len(shares_PK) else None
        weight = weight_PCc if self._spread is not None else torch.einsum("pk,pcs->kcs", shares_PK, weight_PCc)
        self._weight, self._bias = _by_class(weight.flatten(0, 1)), bias_c

    def predict(self, standardised_BKC: Tensor) -> Tensor:
        """Classify images, [B, K, C] -> [B] int64."""
        tokens = standardised_BKC
        if self._spread is not None:
            tokens = torch.einsum("pk,bkc->bpc", self._spread, tokens)
        return _classes(tokens.flatten(1), self._weight, self._bias)


def _classes(features_BF: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    return (weight.T @ features_BF.T + bias[:, None]).argmax(0)


def _by_class(weight_Fc: Tensor) -> Tensor:
    """Return the same matrix, laid out class by class: for few classes the product then takes a third of the time."""
    return weight_Fc.T.contiguous().T


def linear_probe(store: TokenStore) -> Probe:
    """Return the store's probe, fitted at the first call per store (one process fits, others wait).

    Raises:
        StoreError: no training image has a label, or the file of the probe is damaged.
    """
    if store.labels is None or not len(labelled_sample(store)):
        raise StoreError(f"{store.path}: no labels, so no probe")
    labels, windows = store.labels, Windows(store.token_grid, _probe_grid(store.token_grid, store.dim))
    width, classes = windows.num_cells * store.dim, len(store.class_names)
    # Files named probe-v1.safetensors, written by earlier versions, do not say which store they are of.
    name = f"linear-probe-v{FIT_VERSION}.safetensors"
    check = has_shapes({"weight": (width, classes), "bias": (classes,)})
    tensors = computed_once(store, name, lambda: _fit(store, windows, labels), Tensors(), check=check)
    return Probe(_by_class(tensors["weight"]), tensors["bias"], windows)


def labelled_sample(store: TokenStore) -> Tensor:
    """Return the training indices that the probe is fitted on: those of `training_sample` that have a class."""
    sample = training_sample(store)
    return sample[:0] if store.labels is None else sample[store.labels[sample] >= 0]


def _probe_grid(token_grid: int, dim: int) -> int:
    return max(1, min(token_grid, math.isqrt(MAX_FEATURES // dim)))


def _fit(store: TokenStore, windows: Windows, labels: Tensor) -> Mapping[str, Tensor]:
    sample = labelled_sample(store)
    features = torch.cat([windows.split(t).mean(2).flatten(1) for t in standardised_batches(store, sample)])
    targets = F.one_hot(labels[sample], len(store.class_names)).double()
    center, target_mean = features.mean(0), targets.mean(0)
    features -= center
    gram = (features @ features.T).double()
    # Exactly centred, which float32 is not: the constant direction has no variance.
    gram -= gram.mean(0) + gram.mean(1, keepdim=True) - gram.mean()
    values, vectors = torch.linalg.eigh(gram)
    rotated = vectors.T @ (targets - target_mean)

    def fit(ridge: float) -> tuple[float, Tensor]:
        """Return the leave-one-out error and the dual weight."""
        # All labelled images may be equal, or there is one: then the probe predicts the most frequent class.
        ridge = ridge * float(values.mean().clamp_min(torch.finfo(torch.float32).tiny))
        shrink = 1 / (values.clamp_min(0) + ridge)
        dual = vectors @ (shrink[:, None] * rotated)
        # The bias, a mean of the targets that the ridge leaves alone, is that of the others, too.
        diagonal = vectors.square() @ shrink - 1 / (len(sample) * ridge)
        left_out = dual / diagonal.clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        return float(left_out.square().mean()), dual

    _, dual = min(map(fit, RIDGES), key=itemgetter(0))
    weight = features.T @ dual.float()
    return {"weight": weight, "bias": target_mean.float() - center @ weight}

"""The error of an image at every grid, predicted from its uncompressed tokens.

Ridge regression of the log error on the log energies of `Spectrum`, in closed form:

* log on both sides, because errors are positive and what makes an image hard multiplies: twice the energy is twice the
  error, at every grid;
* ridge, because there are hundreds of features that belong together and often only hundreds of images to fit on; its
  strength is the one with the least leave-one-out error, which a ridge has in closed form;
* no decoder and no second network at run time: on the demo this explains 0.75 to 0.86 of the variance of the log error
  of images it never saw, where within-window variances summed over channels explained 0.2 to 0.5.

The rule gives every image at most the target; it does not put tokens where they lower the mean error most. Choosing by
error + price * tokens instead would do that, but it has no target that a user could name for an image.

The margin for a confidence q is the q-quantile of the leave-one-out residuals of a grid: the jackknife interval of
Barber et al. 2021, "Predictive inference with the jackknife+" (arXiv:1905.02928, eq. 1.2), with the finite-sample rank
ceil((n + 1) q). As the choice depends on nothing but the prediction, an image whose grid is chosen this way meets the
target with about that probability; that is tested on held-out images, not assumed.

Shapes: B images, F features, K grids ascending, n images fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tokconv.errors import ConfigError
from tokconv.exports.dynamic.spectrum import Spectrum

STRENGTHS = tuple(10 ** (step / 2) for step in range(-6, 5))
"""Ridge penalties that are tried, per image and in units of a standardised feature's variance."""
FLOOR = 1e-3
"""Energies far below the average say nothing more; the log of a blank image would say too much."""
LEAST_ERROR = 1e-9
"""Errors below are taken as this: at one output token for each token the error may be 0."""
TENSORS = ("floor", "center", "spread", "weight", "bias", "residuals")


class ErrorPredictor(nn.Module):
    """Predicts errors; `fit_predictor` makes one.

    Args:
        spectrum: the features.
        tensors: `floor`, `center`, `spread` [F], `weight` [F, K], `bias` [K] and `residuals` [n, K] ascending, float32.
    """

    floor: Tensor
    center: Tensor
    spread: Tensor
    weight: Tensor
    bias: Tensor
    residuals: Tensor

    def __init__(self, spectrum: Spectrum, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.spectrum = spectrum
        for name in TENSORS:
            self.register_buffer(name, tensors[name].float().clone())
        features, grids = self.weight.shape
        if not (self.floor.shape == self.center.shape == self.spread.shape == (features,)):
            raise ValueError("the numbers of features differ")
        if self.bias.shape != (grids,) or self.residuals.shape[1:] != (grids,) or not len(self.residuals):
            raise ValueError("the numbers of grids differ")

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """[B, N, C] -> [B, K], the median error expected at every grid (1 is the average image's deviation)."""
        return self.log_error(self.spectrum(tokens_BNC)).exp()

    def log_error(self, energies_BF: Tensor) -> Tensor:
        """[B, F] -> [B, K], log of the predicted error."""
        return ((energies_BF + self.floor).log() - self.center) / self.spread @ self.weight + self.bias

    def upper(self, tokens_BNC: Tensor, confidence: float) -> Tensor:
        """[B, N, C] -> [B, K], the error that is not exceeded with this confidence. Raises ConfigError."""
        return self.upper_of(self.spectrum(tokens_BNC), confidence)

    def upper_of(self, energies_BF: Tensor, confidence: float) -> Tensor:
        """The same from energies [B, F]."""
        return (self.log_error(energies_BF) + self.margin(confidence)).exp()

    def margin(self, confidence: float) -> Tensor:
        """[K], added to the log error so that this share of images lies below. Raises ConfigError."""
        images = len(self.residuals)
        rank = math.ceil((images + 1) * confidence - 1e-9) if 0 < confidence < 1 else 0
        if not 1 <= rank <= images:
            raise ConfigError(
                f"confidence: got {confidence}; must be more than 0 and at most {images / (images + 1):.4g}, "
                f"what the {images} images that the predictor was fitted on can tell"
            )
        return self.residuals[rank - 1]


def fit_predictor(spectrum: Spectrum, energies_nF: Tensor, errors_nK: Tensor) -> ErrorPredictor:
    """Fit on the energies of n images and their true errors at K grids."""
    energies, logs = energies_nF.double(), errors_nK.double().clamp_min(LEAST_ERROR).log()
    floor = FLOOR * energies.mean(0) + torch.finfo(torch.float32).tiny
    features = (energies + floor).log()
    center, spread = features.mean(0), features.std(0)
    spread = torch.where(spread > 1e-6, spread, torch.ones_like(spread))
    left, singular, right = torch.linalg.svd((features - center) / spread, full_matrices=False)
    bias = logs.mean(0)
    moved = left.T @ (logs - bias)
    found = []
    for strength in STRENGTHS:
        shrink = singular.square() / (singular.square() + len(features) * strength)
        # A row of the hat matrix says how much an image's own error entered its own prediction.
        own = 1 / len(features) + left.square() @ shrink
        residuals = (logs - bias - left @ (shrink[:, None] * moved)) / (1 - own[:, None]).clamp_min(1e-6)
        weight = right.T @ ((shrink / singular.clamp_min(1e-12))[:, None] * moved)
        found.append((float(residuals.square().sum()), weight, residuals))
    _, weight, residuals = min(found, key=lambda entry: entry[0])
    tensors = {"floor": floor, "center": center, "spread": spread, "weight": weight, "bias": bias}
    return ErrorPredictor(spectrum, tensors | {"residuals": residuals.sort(0).values})


def choose(errors_BK: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """The smallest grid whose error is at most the target, else the largest: its number [B] int64, and whether it meets
    the target [B] bool. A looser target never chooses a larger grid.

    Args:
        errors_BK: of K grids, ascending.
    """
    meets = errors_BK <= target
    index = torch.where(meets.any(1), meets.to(torch.uint8).argmax(1), errors_BK.shape[1] - 1)
    return index, meets.any(1)


def check_target(target: float, name: str = "target_fvu") -> float:
    """The target, when it is one. Raises ConfigError."""
    if not (math.isfinite(target) and target > 0):
        raise ConfigError(f"{name}: got {target}; must be a positive number, as 0.02 (1: predicting the mean)")
    return float(target)

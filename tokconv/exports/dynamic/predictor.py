"""The error of an image at every grid, predicted from its uncompressed tokens.

This is a ridge regression of the log error on the log energies of `Spectrum`, in closed form:

* Both sides are logs, because errors are positive and what makes an image hard multiplies: twice the energy is twice
  the error, at every grid.
* It is a ridge, because there are hundreds of correlated features and often only hundreds of images to fit on. Its
  strength minimises the leave-one-out error, which a ridge has in closed form.
* It needs no decoder and no second network at run time. On the demo it explains 0.75 to 0.86 of the variance of the
  log error of unseen images; within-window variances summed over channels explained 0.2 to 0.5.

The rule keeps every image within the target; it does not put tokens where they lower the mean error most. Choosing by
error + price * tokens would do that, but it has no target that a user could name for an image.

The margin for a confidence q is the q-quantile of the leave-one-out residuals of a grid: the jackknife interval of
Barber et al. 2021, "Predictive inference with the jackknife+" (arXiv:1905.02928, eq. 1.2), with the finite-sample rank
ceil((n + 1) q). The choice depends only on the prediction, so an image meets the target at its grid with about that
probability; this is tested on held-out images, not assumed.

Shapes: B images, F features, K ascending grids, n images fitted on.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from tokconv.errors import ConfigError
from tokconv.exports.dynamic.spectrum import Spectrum

STRENGTHS = tuple(10 ** (step / 2) for step in range(-6, 5))
"""Ridge penalties to try, per image and in units of a standardised feature's variance."""
FLOOR = 1e-3
"""Added to energies, as a share of their average: differences far below it carry no information, and the log of a blank
image would dominate."""
LEAST_ERROR = 1e-9
"""Smaller errors are raised to this: with one output token per input token the error may be 0."""
TENSORS = ("floor", "center", "spread", "weight", "bias", "residuals")


class ErrorPredictor(nn.Module):
    """A linear model of log errors; `fit_predictor` makes one.

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
            raise ValueError("the tensors have different numbers of features")
        if self.bias.shape != (grids,) or self.residuals.shape[1:] != (grids,) or not len(self.residuals):
            raise ValueError("the tensors have different numbers of grids")

    def forward(self, tokens_BNC: Tensor) -> Tensor:
        """Return [B, K], the median error expected of tokens [B, N, C] at each grid; the mean over images is an fvu."""
        return self.log_error(self.spectrum(tokens_BNC)).exp()

    def log_error(self, energies_BF: Tensor) -> Tensor:
        """Return [B, K], the log of the predicted error, from energies [B, F]."""
        return ((energies_BF + self.floor).log() - self.center) / self.spread @ self.weight + self.bias

    def upper_of(self, energies_BF: Tensor, confidence: float) -> Tensor:
        """Return [B, K], the error bound with this confidence, from energies [B, F]. Raises ConfigError as `margin`."""
        return (self.log_error(energies_BF) + self.margin(confidence)).exp()

    def margin(self, confidence: float) -> Tensor:
        """Return [K], what to add to the log error so that this share of images lies below the sum.

        Raises:
            ConfigError: the confidence is not in (0, n / (n + 1)], for n images fitted on.
        """
        images = len(self.residuals)
        rank = math.ceil((images + 1) * confidence - 1e-9) if 0 < confidence < 1 else 0
        if not 1 <= rank <= images:
            raise ConfigError(
                f"confidence: got {confidence}; must be more than 0 and at most {images / (images + 1):.4g}, because "
                f"the predictor was fitted on {images} images"
            )
        return self.residuals[rank - 1]


def fit_predictor(spectrum: Spectrum, energies_nF: Tensor, errors_nK: Tensor) -> ErrorPredictor:
    """Fit the predictor to the energies of n images and their true errors at K grids."""
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
        # The diagonal of the hat matrix: how much an image's own error entered its own prediction.
        own = 1 / len(features) + left.square() @ shrink
        residuals = (logs - bias - left @ (shrink[:, None] * moved)) / (1 - own[:, None]).clamp_min(1e-6)
        weight = right.T @ ((shrink / singular.clamp_min(1e-12))[:, None] * moved)
        found.append((float(residuals.square().sum()), weight, residuals))
    _, weight, residuals = min(found, key=lambda entry: entry[0])
    tensors = {"floor": floor, "center": center, "spread": spread, "weight": weight, "bias": bias}
    return ErrorPredictor(spectrum, tensors | {"residuals": residuals.sort(0).values})


def choose(errors_BK: Tensor, target: float) -> tuple[Tensor, Tensor]:
    """Choose the smallest grid whose error is at most the target, or else the largest.

    A looser target never chooses a larger grid.

    Args:
        errors_BK: at K ascending grids.

    Returns:
        The index of the grid, int64 [B], and whether it meets the target, bool [B].
    """
    meets = errors_BK <= target
    index = torch.where(meets.any(1), meets.to(torch.uint8).argmax(1), errors_BK.shape[1] - 1)
    return index, meets.any(1)


def check_target(target: float, name: str = "target_fvu") -> float:
    """Return the target as a float. Raises ConfigError unless it is positive and finite."""
    if not (math.isfinite(target) and target > 0):
        raise ConfigError(f"{name}: got {target}; must be a positive number, as 0.02 (1: predicting the mean)")
    return float(target)

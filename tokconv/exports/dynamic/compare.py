"""What choosing a grid per image saves: mean tokens per image, against fixed grids with the same error.

The error of an image is its sum of squared errors over the average image's sum of squared deviations, so that the mean
over images is an fvu.

Shapes: n images never used for fitting, K ascending grids, R bootstrap resamples (or 1).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from tokconv.exports.dynamic.predictor import choose

RESAMPLES = 2000
SEED = 20_004
TABLE_TARGETS = 9


@dataclass(frozen=True)
class Saving:
    """Mean tokens per image and the error of the dynamic choice at one target, and fixed grids with the same error."""

    target: float
    tokens: float
    fvu: float
    met: float
    """Share of images whose true error is at most the target."""
    unmet: float
    """Share of images for which the choice expects no grid to meet the target; they get the largest."""
    mixed_tokens: float
    """Mean tokens of the cheapest random mixture of two fixed grids with this fvu."""
    fixed_tokens: float
    """Tokens of the smallest single fixed grid with at most this fvu (of the largest grid if there is none)."""
    saving: float
    """1 - tokens / mixed_tokens."""
    low: float
    high: float
    """95 % percentile interval of `saving` over resampled images, with the predictor fixed."""


def savings(errors_nK: Tensor, chosen_by_nK: Tensor, grids: Sequence[int], targets: Sequence[float]) -> list[Saving]:
    """Apply the rule at every target.

    Args:
        errors_nK: true errors, float64.
        chosen_by_nK: the errors that the choice is based on: predicted ones, or the true ones for the oracle.
    """
    errors = errors_nK.double()
    sizes = torch.tensor([k * k for k in grids], dtype=torch.float64)
    weights = torch.cat([torch.full((1, len(errors)), 1 / len(errors), dtype=torch.float64), _resampled(len(errors))])
    fixed = weights @ errors
    found = []
    for target in targets:
        index, believed = choose(chosen_by_nK, target)
        own = errors.gather(1, index[:, None])[:, 0]
        tokens, fvu = weights @ sizes[index], weights @ own
        mixed = mixed_tokens(fvu, fixed, sizes)
        saving = 1 - tokens / mixed
        low, high = saving[1:].quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
        single = sizes[fixed[0] <= fvu[0]]
        found.append(
            Saving(
                target=target,
                tokens=float(tokens[0]),
                fvu=float(fvu[0]),
                met=float((own <= target).double().mean()),
                unmet=float((~believed).double().mean()),
                mixed_tokens=float(mixed[0]),
                fixed_tokens=float(single.min() if len(single) else sizes.max()),
                saving=float(saving[0]),
                low=low,
                high=high,
            )
        )
    return found


def mixed_tokens(fvu_R: Tensor, fixed_RK: Tensor, sizes_K: Tensor) -> Tensor:
    """Return [R], the fewest mean tokens with which a random mixture of at most two fixed grids reaches an fvu.

    If not even the largest grid reaches it, these are the largest grid's tokens, which favours the fixed grids.
    """
    best = torch.full_like(fvu_R, float(sizes_K.max()))
    for number, size in enumerate(sizes_K):
        best = torch.where(fixed_RK[:, number] <= fvu_R, best.minimum(size), best)
        for other in range(number + 1, len(sizes_K)):
            coarse, fine = fixed_RK[:, number], fixed_RK[:, other]
            between = (coarse >= fvu_R) & (fvu_R >= fine) & (coarse > fine)
            share = (coarse - fvu_R) / torch.where(between, coarse - fine, 1.0)
            best = torch.where(between, best.minimum(size + share * (sizes_K[other] - size)), best)
    return best


def targets_between(errors_nK: Tensor, count: int = TABLE_TARGETS) -> list[float]:
    """Return targets to try, ascending, with two digits and evenly spaced on a log scale.

    They go from where nearly all images need the largest grid to where nearly all get the smallest. The lower end is
    the geometric mean of the two smallest medians: below it there is nothing to choose.
    """
    medians = errors_nK.double().quantile(0.5, dim=0).clamp_min(1e-6).sort().values
    high = 1.35 * float(medians[-1])
    low = max(float((medians[0] * medians[1]).sqrt()), high / 100)
    steps = torch.linspace(0, 1, count, dtype=torch.float64)
    return sorted({float(f"{low * (high / low) ** float(step):.2g}") for step in steps})


def explained(predicted_nK: Tensor, errors_nK: Tensor) -> tuple[list[float], list[float]]:
    """Return per grid, for the logs of predicted and true errors, R2 (determination) and Spearman's correlation."""
    log_predicted, log_true = predicted_nK.double().log(), errors_nK.double().log()
    total = (log_true - log_true.mean(0)).square().sum(0)
    r2 = 1 - (log_true - log_predicted).square().sum(0) / total
    ranks = [values.argsort(0).argsort(0).double() for values in (log_predicted, log_true)]
    spearman = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(ranks[0].T, ranks[1].T, strict=True)]
    return [float(value) for value in r2], spearman


def table(dynamic: Sequence[Saving], oracle: Sequence[Saving]) -> str:
    """Return the comparison as text, one line per target."""
    lines = [
        f"{'target':>8}{'tokens':>9}{'fvu':>9}{'met':>7}{'mixed':>9}{'single':>8}{'saving':>9}{'95 % interval':>18}"
        f"{'oracle':>9}"
    ]
    for row, best in zip(dynamic, oracle, strict=True):
        interval = f"{_percent(row.low)} to {_percent(row.high)}"
        lines.append(
            f"{row.target:>8.3g}{row.tokens:>9.1f}{row.fvu:>9.4f}{row.met:>7.0%}{row.mixed_tokens:>9.1f}"
            f"{row.fixed_tokens:>8.0f}{_percent(row.saving):>9}{interval:>18}{_percent(best.saving):>9}"
        )
    return "\n".join(lines)


LEGEND = (
    "mean tokens per image of the dynamic choice, and its fvu; met: images whose error is within the target;\n"
    "at the same fvu, mixed: two fixed grids at random, single: the smallest fixed grid; saving: against mixed;\n"
    "oracle: the saving of the same rule if it knew the true errors"
)


def _percent(share: float) -> str:
    # The sum keeps a negative share that rounds to zero from printing as -0.0%.
    return f"{round(share, 3) + 0.0:+.1%}"


def _resampled(images: int) -> Tensor:
    """Return [R, n], the weight of each image in each resample; rows sum to 1."""
    generator = torch.Generator().manual_seed(SEED)
    drawn = torch.randint(images, (RESAMPLES, images), generator=generator)
    counts = torch.zeros(RESAMPLES, images, dtype=torch.float64)
    return counts.scatter_add_(1, drawn, torch.ones_like(drawn, dtype=torch.float64)) / images

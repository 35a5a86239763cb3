"""Fit and evaluate the predictor of one folder of champions, on the validation split of their token store.

The compressors were never trained on that split. (Their sweep did choose them by it, which makes all errors a little
too small, fixed and dynamic alike.) A predictor is fitted on half of the split, by a hash of the images' keys, and
evaluated on the other half, from which all reported figures come. The predictor that is written is then fitted on both
halves: the same recipe on twice the images, so the report is of a slightly worse predictor than the user gets.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from tokconv.errors import CheckpointError, StoreError
from tokconv.evaluation.heldout import held_out
from tokconv.exports.artefact import load_decoder
from tokconv.exports.dynamic import plot
from tokconv.exports.dynamic.compare import LEGEND, Saving, explained, savings, table, targets_between
from tokconv.exports.dynamic.compressor import DESCRIPTION, FOLDER, FORMAT, MEDIAN, PREDICTOR, Champion, read_champions
from tokconv.exports.dynamic.predictor import ErrorPredictor, fit_predictor
from tokconv.exports.dynamic.spectrum import Spectrum, principal_axes
from tokconv.store.reader import TokenStore
from tokconv.store.sample import standardised_batches, training_sample
from tokconv.system.devices import resolve_device
from tokconv.system.files import atomic_path, write_json

MIN_IMAGES = 20
"""With fewer held-out images, neither half is informative."""
AXES_IMAGES = 512
"""Training images from whose tokens the principal components are computed: hundreds of thousands of tokens."""
BATCH = 32
CONFIDENCES = (MEDIAN, 0.9)
CURVE_TARGETS = 60
PICTURE = "tokens_vs_fvu.png"

Progress = Callable[[int, int], None]


@dataclass(frozen=True)
class DynamicReport:
    """The evaluation of a predictor on images that it was not fitted on."""

    grids: tuple[int, ...]
    fitted_on: int
    judged_on: int
    log_error_r2: tuple[float, ...]
    """Determination of the log error, per grid."""
    rank_correlation: tuple[float, ...]
    """Spearman's, per grid."""
    coverage: dict[str, tuple[float, ...]]
    """By confidence: the share of images, per grid, whose error is below the predicted bound."""
    dynamic: tuple[Saving, ...]
    oracle: tuple[Saving, ...]

    def text(self) -> str:
        """Return the report for a terminal."""
        names = "".join(f"{f'{grid} x {grid}':>10}" for grid in self.grids)
        lines = [
            f"fitted on {self.fitted_on} held-out images, evaluated on {self.judged_on} others",
            f"{'':<34}{names}",
            f"{'R2 of the log error':<34}" + "".join(f"{value:>10.2f}" for value in self.log_error_r2),
            f"{'rank correlation':<34}" + "".join(f"{value:>10.2f}" for value in self.rank_correlation),
        ]
        for name, shares in self.coverage.items():
            lines.append(f"{f'below the bound of confidence {name}':<34}" + "".join(f"{s:>10.0%}" for s in shares))
        return "\n".join([*lines, "", table(self.dynamic, self.oracle), "", LEGEND])


def fit_dynamic(
    champions_dir: str | Path, store: TokenStore, *, device: str | None = None, progress: Progress | None = None
) -> DynamicReport:
    """Fit the predictor of a folder's compressors, evaluate it, and write CHAMPIONS_DIR/dynamic, whole or not at all.

    The plot is left out if matplotlib is not installed.

    Args:
        store: the token store that the compressors were trained on.
        progress: called with (images done, images in all).

    Raises:
        CheckpointError: there are fewer than two compressors, one has no decoder, or they come from another store.
        StoreError: there are too few held-out images.

    Example:
        >>> print(fit_dynamic("runs/sweeps/demo-001/champions", store).text())    # doctest: +SKIP
    """
    folder = Path(champions_dir)
    champions = read_champions(folder)
    _check(folder, champions, store)
    # Taken before measuring, so that the predictor is refused if a compressor is replaced meanwhile.
    identities = {champion.name: champion.identity() for champion in champions}
    grids = tuple(champion.grid for champion in champions)
    axes = principal_axes(standardised_batches(store, training_sample(store, AXES_IMAGES)))
    spectrum = Spectrum(store.mean, axes, torch.tensor(store.scale))
    energies, errors = measure(champions, spectrum, store, device=device, progress=progress)
    first, second = halves([store.keys[index] for index in held_out(store).tolist()])
    evaluated = fit_predictor(spectrum, energies[first], errors[first])
    report = _report(evaluated, energies[second], errors[second], grids, targets_between(errors[first]))
    final = fit_predictor(spectrum, energies, errors)
    with atomic_path(folder / FOLDER) as temporary:
        temporary.mkdir()
        save_file({name: value.contiguous() for name, value in final.state_dict().items()}, temporary / PREDICTOR)
        if importlib.util.find_spec("matplotlib") is not None:
            curve, true = targets_between(errors[first], CURVE_TARGETS), errors[second]
            predicted = evaluated.upper_of(energies[second], MEDIAN)
            plotted = (savings(true, by, grids, curve) for by in (predicted, true))
            plot.draw(temporary / PICTURE, true, grids, *plotted)
        description = {
            "format": FORMAT,
            "compressors": identities,
            "store_fingerprint": store.fingerprint,
            "images": len(errors),
            "report": asdict(report),
        }
        write_json(temporary / DESCRIPTION, description)
    return report


@torch.no_grad()
def measure(
    champions: Sequence[Champion],
    spectrum: Spectrum,
    store: TokenStore,
    *,
    device: str | None = None,
    progress: Progress | None = None,
) -> tuple[Tensor, Tensor]:
    """Measure features and true errors of the evaluation protocol's held-out images, n of them, in its order.

    Returns:
        The energies, [n, F] float32, and the errors at K grids, [n, K] float64, in units of the average image's
        deviation, so that the mean over images is `val/fvu`.

    Raises:
        CheckpointError: a compressor has no decoder.
    """
    place = resolve_device(device)
    indices = held_out(store)
    pairs = [(champion.compressor.to(place), load_decoder(champion.path).to(place)) for champion in champions]
    on_place = spectrum.to(place)
    energies, errors, deviations = [], [], []
    batches = indices.split(BATCH)
    for number, (batch, read_tokens) in enumerate(zip(batches, store.batches(batches), strict=True)):
        tokens = read_tokens.to(place)
        energies.append(on_place(tokens).cpu())
        squares = [_square_sum(decoder(compressor(tokens)).float() - tokens) for compressor, decoder in pairs]
        errors.append(torch.stack(squares, dim=1))
        deviations.append(_square_sum(tokens - store.mean.to(place)))
        if progress is not None:
            progress(number * BATCH + len(batch), len(indices))
    spectrum.cpu()
    return torch.cat(energies), torch.cat(errors) / torch.cat(deviations).mean()


def halves(keys: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Split images into halves by the hash of their keys, the same on every machine and in any order of the images."""
    order = sorted(range(len(keys)), key=lambda number: hashlib.sha256(f"dynamic:{keys[number]}".encode()).digest())
    return torch.tensor(sorted(order[::2])), torch.tensor(sorted(order[1::2]))


def _report(
    predictor: ErrorPredictor, energies: Tensor, errors: Tensor, grids: tuple[int, ...], targets: Sequence[float]
) -> DynamicReport:
    r2, spearman = explained(predictor.log_error(energies).exp(), errors)
    bounds = {confidence: predictor.upper_of(energies, confidence) for confidence in CONFIDENCES}
    return DynamicReport(
        grids=grids,
        fitted_on=len(predictor.residuals),
        judged_on=len(errors),
        log_error_r2=tuple(r2),
        rank_correlation=tuple(spearman),
        coverage={f"{q:g}": tuple((errors <= bound).double().mean(0).tolist()) for q, bound in bounds.items()},
        dynamic=tuple(savings(errors, bounds[MEDIAN], grids, targets)),
        oracle=tuple(savings(errors, errors, grids, targets)),
    )


def _square_sum(tokens_BNC: Tensor) -> Tensor:
    return tokens_BNC.square().sum((1, 2), dtype=torch.float64).cpu()


def _check(folder: Path, champions: Sequence[Champion], store: TokenStore) -> None:
    if champions[0].description.get("store_fingerprint") != store.fingerprint:
        raise CheckpointError(
            f"{folder}: its compressors were not trained on {store.path}; name the store that they were trained on"
        )
    if len(store.val_indices) < MIN_IMAGES:
        raise StoreError(
            f"{store.path}: has {len(store.val_indices)} held-out images; a predictor needs at least {MIN_IMAGES}"
        )

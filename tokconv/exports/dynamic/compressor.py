"""The compressors of one sweep with their predictor, as one compressor that has a target instead of a grid.

A folder of champions holds:

    grid-04/fidelity/ ...      exported compressors, those for fidelity of a sweep; or any folders of them, whose names
                               do not matter; their grids must differ
    dynamic/                   fitted for exactly these, by `tokconv dynamic` or at the end of the sweep
        dynamic.json           format, the compressors' hashes, the evaluation on held-out images
        predictor.safetensors  the predictor
        tokens_vs_fvu.png      the plot of that evaluation
"""

from __future__ import annotations

import itertools
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from tokconv.errors import CheckpointError, ConfigError
from tokconv.evaluation.purposes import FIDELITY
from tokconv.exports.artefact import FILES, load_compressor, read_config
from tokconv.exports.champions import champions_folder
from tokconv.exports.dynamic.predictor import ErrorPredictor, check_target, choose
from tokconv.exports.dynamic.spectrum import Spectrum
from tokconv.models.compressor import Compressor
from tokconv.system.files import file_digest, read_json_object

FORMAT = 1
FOLDER, DESCRIPTION, PREDICTOR = "dynamic", "dynamic.json", "predictor.safetensors"
MEDIAN = 0.5


@dataclass(frozen=True)
class Champion:
    """One exported compressor of a folder."""

    path: Path
    compressor: Compressor
    description: Mapping[str, Any]
    name: str
    """Its path in the folder of all of them: `grid-06/fidelity`."""

    @property
    def grid(self) -> int:
        return self.compressor.output_grid_size

    def identity(self) -> dict[str, Any]:
        """Return the grid, and the sha256 of the compressor and of its decoder, if the folder has one."""
        files = {name: self.path / file for name, file in FILES.items()}
        return {"grid": self.grid} | {name: file_digest(file) for name, file in files.items() if file.is_file()}


class DynamicCompressor(nn.Module):
    """A compressor with a target: [B, N, C] -> a list of B tensors [k * k, C] and their grids k, int64 [B].

    Each image gets the smallest grid whose predicted error meets the target, or else the largest. `load_dynamic` makes
    one.

    Args:
        champions: the compressors, with ascending grids.
        predictor: fitted for them.
        target_fvu: the largest error of an image: its sum of squared errors over the average image's sum of squared
            deviations from the training mean, so that the mean over many images is their fvu.
        confidence: the probability with which the chosen grid is to meet the target.

    Attributes:
        paths: the folders of the compressors, which also hold their decoders.

    Raises:
        ConfigError: the target is not positive and finite, or too few images were fitted on for this confidence.
    """

    grids: Tensor

    def __init__(
        self, champions: Sequence[Champion], predictor: ErrorPredictor, target_fvu: float, confidence: float
    ) -> None:
        super().__init__()
        self.compressors, self.predictor = nn.ModuleList(champion.compressor for champion in champions), predictor
        self.target_fvu, self.confidence = check_target(target_fvu), confidence
        self.predictor.margin(confidence)
        self.paths = [champion.path for champion in champions]
        self.token_grid, self.dim = champions[0].compressor.token_grid, champions[0].compressor.dim
        self.register_buffer("grids", torch.tensor([champion.grid for champion in champions]), persistent=False)

    @torch.no_grad()
    def choose(self, tokens_BNC: Tensor) -> tuple[Tensor, Tensor]:
        """Return each image's compressor by index, int64 [B], and whether it should meet the target, bool [B]."""
        return choose(self.predictor.upper_of(self.predictor.spectrum(tokens_BNC), self.confidence), self.target_fvu)

    def forward(self, tokens_BNC: Tensor) -> tuple[list[Tensor], Tensor]:
        if tokens_BNC.shape[1:] != (self.token_grid**2, self.dim):
            raise ConfigError(
                f"tokens: got shape {list(tokens_BNC.shape)}; these compressors need "
                f"[batch, {self.token_grid**2}, {self.dim}]"
            )
        index, _ = self.choose(tokens_BNC)
        return self.compress(tokens_BNC, index), self.grids[index]

    def compress(self, tokens_BNC: Tensor, index_B: Tensor) -> list[Tensor]:
        """Return the tokens [k * k, C] of each image from the compressor of its index; each compressor runs once."""
        parts: list[Tensor] = [tokens_BNC[:0, 0]] * len(tokens_BNC)
        for number, compressor in enumerate(self.compressors):
            places = (index_B == number).nonzero().flatten()
            if len(places):
                for place, tokens in zip(places.tolist(), compressor(tokens_BNC[places]), strict=True):
                    parts[place] = tokens
        return parts


def load_dynamic(champions_dir: str | Path, *, target_fvu: float, confidence: float = MEDIAN) -> DynamicCompressor:
    """Load the compressors of a sweep and their predictor, in eval mode on the CPU; torch and safetensors are enough.

    Called with tokens [B, N, C], the result returns a list of B tensors [k * k, C] and the grids k, int64 [B].

    Args:
        champions_dir: a sweep's `champions`, or the sweep by its name, as "demo".
        target_fvu, confidence: as for `DynamicCompressor`.

    Raises:
        CheckpointError: the compressors do not belong together, or no predictor was fitted for exactly these.
        ConfigError: the target or the confidence is out of bounds.

    Example:
        >>> dynamic = tokconv.load_dynamic("runs/sweeps/demo-001/champions", target_fvu=0.02)    # doctest: +SKIP
        >>> parts, grids = dynamic(tokens)                                                        # doctest: +SKIP
        >>> [tuple(part.shape) for part in parts], grids                                          # doctest: +SKIP
        ([(36, 64), (64, 64)], tensor([6, 8]))
    """
    folder = champions_folder(Path(champions_dir))
    champions = read_champions(folder)
    predictor = _load_predictor(folder, champions)
    return DynamicCompressor(champions, predictor, target_fvu, confidence).eval()


def read_champions(champions_dir: str | Path) -> list[Champion]:
    """Load the exported compressors of a folder, by ascending grid.

    Raises:
        CheckpointError: there are fewer than two, one is damaged, or they do not belong together.
    """
    folder = Path(champions_dir)
    found = [file.parent for form in ("*", f"*/{FIDELITY}") for file in folder.glob(f"{form}/config.json")]
    # The name of what an interrupted export left begins with a dot.
    paths = sorted(path for path in found if not str(path.relative_to(folder)).startswith("."))
    if len(paths) < 2:
        raise CheckpointError(
            f"{folder}: holds {len(paths)} exported compressors; a choice needs at least two, as in a sweep's champions"
        )
    champions = [
        Champion(path, load_compressor(path), read_config(path), path.relative_to(folder).as_posix()) for path in paths
    ]
    champions.sort(key=lambda champion: champion.grid)
    first = champions[0]
    for other in champions[1:]:
        for what, mine, theirs in zip(_SHARED, _shared(first), _shared(other), strict=True):
            if mine != theirs:
                raise CheckpointError(
                    f"{folder}: {other.name} has another {what} than {first.name}; "
                    "a choice needs compressors of one token store"
                )
    for before, after in itertools.pairwise(champions):
        if before.grid == after.grid:
            raise CheckpointError(
                f"{folder}: {before.name} and {after.name} have the same grid, {after.grid} x {after.grid}; "
                "keep one of them"
            )
    return champions


_SHARED = ("encoder", "token grid", "number of channels", "token store")


def _shared(champion: Champion) -> tuple[Any, ...]:
    compressor, description = champion.compressor, champion.description
    return description.get("encoder"), compressor.token_grid, compressor.dim, description.get("store_fingerprint")


def read_description(champions_dir: Path) -> dict[str, Any]:
    """Read the folder's dynamic.json. Raises CheckpointError if it is missing or this tokconv cannot read it."""
    file = champions_dir / FOLDER / DESCRIPTION
    advice = f"run: tokconv dynamic {shlex.quote(str(champions_dir))}"
    if not file.is_file():
        raise CheckpointError(f"{champions_dir}: no predictor has been fitted for these compressors; {advice}")
    try:
        description = read_json_object(file)
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged; {advice}") from error
    if description.get("format") != FORMAT:
        raise CheckpointError(f"{file}: has another format than this tokconv reads ({FORMAT}); {advice}")
    return description


def _load_predictor(folder: Path, champions: list[Champion]) -> ErrorPredictor:
    found = read_description(folder).get("compressors")
    fitted_for: dict[str, Any] = found if isinstance(found, dict) else {}
    advice = f"run: tokconv dynamic {shlex.quote(str(folder))}"
    for champion in champions:
        mine = champion.identity()
        theirs = fitted_for.get(champion.name)
        # If the folder has no decoder, only the compressor must be the one that was measured.
        if not isinstance(theirs, dict) or any(theirs.get(key) != value for key, value in mine.items()):
            raise CheckpointError(f"{champion.path}: is not the compressor that the predictor was fitted for; {advice}")
    if len(fitted_for) != len(champions):
        raise CheckpointError(f"{folder}: a compressor that the predictor was fitted for is gone; {advice}")
    file = folder / FOLDER / PREDICTOR
    try:
        tensors = load_file(file)
        spectrum = Spectrum(*(tensors[f"spectrum.{name}"] for name in ("mean", "axes", "scale")))
        predictor = ErrorPredictor(spectrum, tensors)
    except (OSError, SafetensorError, KeyError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{file}: missing or damaged; {advice}") from error
    if len(predictor.bias) != len(champions):
        raise CheckpointError(f"{file}: predicts {len(predictor.bias)} grids, not {len(champions)}; {advice}")
    return predictor

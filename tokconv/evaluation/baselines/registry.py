"""The registry of baselines: what each closed-form compressor is called, how plots draw it, and what computes it.

Everything that fits, names or draws a baseline reads it from here. Importing this module does not import torch:
`Baseline.function` is looked up only when it is needed. To add a baseline, write its function and add its entry here;
a change of what a fit computes also needs a new version of it (`codecs.fit_version`).
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from tokconv.evaluation.figure import SWEEP, TRAIN
from tokconv.system.registry import Registry

PLOTS, BOUND = "plots", "bound"
"""The plots of a sweep, a place that shows baselines like those in `tokconv.evaluation.figure`; and no place, but a
bound on what the champions of a purpose may lose."""

Kind = Literal["projection", "pca", "selection", "image_selection", "merging", "factorisation", "stored"]
_HERE = "tokconv.evaluation.baselines"


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One closed-form compressor.

    Args:
        name: its key in figures and files, such as "window_pca".
        title: its name in tables and plots.
        meaning: what it does, in one phrase.
        color, marker: how plots draw it.
        kind: what its function is, and which decoder is fitted to it (`fitting.py`).
        source: the function, "MODULE:NAME". By kind: "projection", (C, W) -> weight [C, W*C] of a fixed linear layer
            on windows; "pca", (Components, WindowMoments) -> LinearCodec; "selection", (tokens [B, N, C], Windows) ->
            cells [B, K, C]; "image_selection", the same of (tokens, Windows, images [B]); "merging",
            (tokens [B, N, C], K) -> merged tokens [B, K, C] and group of each token [B, N]; "factorisation" and
            "stored", (TokenStore, k) -> the codec on standardised tokens, which is fitted by itself.
        places: where it is always shown next to compressors. `tokconv evaluate` shows all baselines, and a sweep also
            those that win.
    """

    name: str
    title: str
    meaning: str
    color: str
    marker: str
    kind: Kind
    source: str
    places: frozenset[str] = frozenset()

    @property
    def has_side_information(self) -> bool:
        """Whether its decoder also needs to know which token went into which compressed token."""
        return self.kind == "merging"

    @property
    def reads_images(self) -> bool:
        """Whether its codec must know which images of the store it is given."""
        return self.kind in ("image_selection", "stored")

    @property
    def label(self) -> str:
        """The title, with an asterisk if the decoder needs side information."""
        return f"{self.title}*" if self.has_side_information else self.title

    @property
    def function(self) -> Callable[..., Any]:
        """The function that `source` names; imports torch."""
        return pkgutil.resolve_name(self.source)


# Colours by Okabe and Ito, which the colour-blind can tell apart; https://jfly.uni-koeln.de/color/
_ENTRIES = (
    Baseline(
        name="pooling",
        title="pooling",
        meaning="average of each window",
        color="#0072B2",
        marker="s",
        kind="projection",
        source=f"{_HERE}.linear:averaging",
        places=frozenset({TRAIN, SWEEP, PLOTS}),
    ),
    Baseline(
        name="max_norm",
        title="max norm",
        meaning="the token of each window that is furthest from the mean token",
        color="#999999",
        marker="v",
        kind="selection",
        source=f"{_HERE}.selection:furthest_token",
    ),
    Baseline(
        name="salient",
        title="salient means",
        meaning="weighted mean of each window; a token weighs the more, the further it is from its image's mean",
        color="#117733",
        marker="d",
        kind="selection",
        source="tokconv.models.salient:salient_pooling",
    ),
    Baseline(
        name="uniform",
        title="uniform",
        meaning="the token at the centre of each window",
        color="#882255",
        marker="p",
        kind="selection",
        source=f"{_HERE}.selection:central_token",
    ),
    Baseline(
        name="random",
        title="random",
        meaning="one random token of each window, always the same for an image",
        color="#999933",
        marker="*",
        kind="image_selection",
        source=f"{_HERE}.selection:random_token",
    ),
    Baseline(
        name="downsampled",
        title="small image",
        meaning="the tower's own tokens of the image downsampled to k x k patches, with interpolated positions "
        "(arXiv:2510.07143)",
        color="#332288",
        marker=">",
        kind="stored",
        source=f"{_HERE}.downsampled:downsampled_codec",
    ),
    Baseline(
        name="bilinear",
        title="bilinear",
        meaning="the grid resized with bilinear interpolation, as LLaVA-style resamplers do",
        color="#56B4E9",
        marker="o",
        kind="selection",
        source=f"{_HERE}.selection:resized",
    ),
    Baseline(
        name="pixel_shuffle",
        title="pixel shuffle",
        meaning="space-to-depth of each window and a linear layer that was never trained",
        color="#E69F00",
        marker="P",
        kind="projection",
        source=f"{_HERE}.linear:shuffling",
    ),
    Baseline(
        name="tome",
        title="ToMe",
        meaning="token merging, Bolya et al. 2022",
        color="#D55E00",
        marker="X",
        kind="merging",
        source=f"{_HERE}.merging:tome",
    ),
    Baseline(
        name="prumerge",
        title="PruMerge",
        meaning="token selection and merging after Shang et al. 2024",
        color="#8B5A2B",
        marker="<",
        kind="merging",
        source=f"{_HERE}.merging:prumerge",
    ),
    Baseline(
        name="window_pca",
        title="window PCA",
        meaning="the C leading principal components of each window: the least error of any linear compressor of it",
        color="#009E73",
        marker="D",
        kind="pca",
        source=f"{_HERE}.pca:window_pca",
        places=frozenset({BOUND}),
    ),
    Baseline(
        name="matched_window_pca",
        title="matched PCA",
        meaning="the same components in coordinates with the tokens' own mean and covariance: the same error",
        color="#CC79A7",
        marker="^",
        kind="pca",
        source=f"{_HERE}.pca:matched_window_pca",
        places=frozenset({TRAIN, SWEEP, PLOTS}),
    ),
    Baseline(
        name="own_factorisation",
        title="own factors",
        meaning="the image's own low-rank factorisation, its channel directions spread over the cells; the rank is "
        "chosen per store",
        color="#000000",
        marker="h",
        kind="factorisation",
        source=f"{_HERE}.factorisation:factorisation_codec",
    ),
)

BASELINES: Registry[Baseline] = Registry("baseline", {entry.name: entry for entry in _ENTRIES})
"""Every baseline by name, in the order in which they are shown."""


def title_of(name: str) -> str:
    """Return the title of a baseline; a file may name one that this version no longer has."""
    return BASELINES[name].title if name in BASELINES else name.replace("_", " ")


def of_kind(*kinds: Kind) -> tuple[Baseline, ...]:
    """Return the baselines of some kinds, in order."""
    return tuple(entry for entry in BASELINES.values() if entry.kind in kinds)


def shown_in(place: str) -> tuple[Baseline, ...]:
    """Return the baselines that a place shows, in order."""
    return tuple(entry for entry in BASELINES.values() if place in entry.places)


BESIDE_A_TRIAL = tuple(entry.name for entry in BASELINES.values() if entry.places)
"""The baselines that every trial is shown with once it is done; it does not wait for the others."""

SHOWN_DURING_TRAINING = tuple(entry.name for entry in shown_in(TRAIN))
"""Those that the first step of a run waits for."""

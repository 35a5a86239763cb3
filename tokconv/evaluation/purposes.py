"""The registry of purposes: what a compressor is wanted for, and the figure by which the best one for it is found.

A compressor has three consumers: a decoder, a reader that is not retrained, and one that is. The best compressor for
one of them is rarely the best for another: window PCA without matched moments has the fvu of the matched one, and a
frozen reader cannot use it. So every output grid of a sweep has a champion per purpose. To add a purpose, add its entry
here.
"""

from __future__ import annotations

import math
from collections.abc import Container, Mapping
from dataclasses import dataclass

from tokconv.evaluation.figure import LABELS, NEIGHBOURS, SAMPLES
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.protocol import MIN_NEIGHBOUR_IMAGES, MIN_TEST_IMAGES
from tokconv.system.registry import Registry

NEEDS = {
    "": "nothing",
    LABELS: "labels of training and held-out images",
    NEIGHBOURS: f"{MIN_NEIGHBOUR_IMAGES} held-out images",
    SAMPLES: f"{MIN_TEST_IMAGES} training and {MIN_TEST_IMAGES} held-out images",
}
"""What a figure requires of its store, in words."""

LIKENESS = (
    *("val/auc_token", "val/auc_token_white", "val/auc_grid", "val/auc_token_quick"),
    *("val/swd", "val/mmd"),
)
"""How compressed tokens differ from real ones, whatever image they are of."""


@dataclass(frozen=True)
class Bound:
    """A figure must be no worse than a baseline's at the same grid."""

    figure: str
    baseline: str
    advice: str
    """What to try if no trial keeps it, as an imperative."""


@dataclass(frozen=True, kw_only=True)
class Purpose:
    """One use of a compressor.

    Args:
        name: its key in a spec, a folder of a sweep and an alias of MLflow, such as "plug-in".
        meaning: what it is for, as one sentence.
        figures: the figures that decide, in the order of preference: the first that the store can have.
        bound: what every candidate has to keep besides; None for nothing.
        proxies: figures that say nothing about content, also those that only a spec may choose. A selection of real
            tokens has the best token-likeness by construction, so only baselines that keep the bound compete on it.
        advice: what to try if no trial beats the baselines, as an imperative.
    """

    name: str
    meaning: str
    figures: tuple[str, ...]
    bound: Bound | None = None
    proxies: tuple[str, ...] = ()
    advice: str

    def figure(self, known: Container[str]) -> str | None:
        """Return the figure that decides where these figures exist; None if the purpose cannot be judged."""
        return next((name for name in self.figures if name in known), None)

    def limit(self, baselines: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the value of the bound among the baselines of a grid; None without a bound, or if it is unknown."""
        return None if self.bound is None else baselines.get(self.bound.baseline, {}).get(self.bound.figure)

    def standing(
        self, figures: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]
    ) -> tuple[float | None, tuple[str, ...]]:
        """Return how a compressor stands for this purpose, which its figures must have.

        Args:
            figures: the compressor's.
            baselines: name -> figures, at its grid.

        Returns:
            The value of the bound if the compressor breaks it, else None; and the baselines that are at least as good,
            the best first.
        """
        name, limit = self.figure(figures), self.limit(baselines)
        assert name is not None
        sign, bound = 1 if FIGURES[name].lower_is_better else -1, "" if self.bound is None else self.bound.figure
        rivals = {rival: own for rival, own in baselines.items() if name in own}
        if limit is not None and name in self.proxies:
            rivals = {rival: own for rival, own in rivals.items() if own.get(bound, math.inf) <= limit}
        as_good = [rival for rival, own in rivals.items() if sign * own[name] <= sign * figures[name]]
        as_good.sort(key=lambda rival: sign * rivals[rival][name])
        return (limit if limit is not None and figures[bound] > limit else None), tuple(as_good)

    @property
    def missing(self) -> str:
        """Why a store cannot have this purpose, as a sentence."""
        figures = (f"{name} (it needs {NEEDS[FIGURES[name].needs]})" for name in self.figures)
        return f"{self.name}: left out, there is no {' and no '.join(figures)}"


FIDELITY = "fidelity"
_ENTRIES = (
    Purpose(
        name=FIDELITY,
        meaning="The decoder gets back as much of the tokens as possible.",
        figures=("val/fvu",),
        advice="train longer (training.epochs), or search model.compressor.hidden_dim and training.learning_rate",
    ),
    Purpose(
        name="plug-in",
        meaning="A reader of real tokens takes the compressed ones in their place, without being retrained.",
        figures=("val/reader_kept", "val/auc_token"),
        bound=Bound("val/fvu", "window_pca", "train longer (training.epochs), or lower loss.weights.wgan"),
        proxies=LIKENESS,
        advice="search the weight of the adversarial loss (loss.weights.wgan) with loss.wgan.balance=gradient",
    ),
    Purpose(
        name="adapted",
        meaning="A reader is trained again, on the compressed tokens.",
        figures=("val/adapted_kept",),
        advice="search loss.weights.ae and model.compressor.kind, or train longer (training.epochs)",
    ),
)
PURPOSES: Registry[Purpose] = Registry("champions", {entry.name: entry for entry in _ENTRIES})
"""Every purpose by name, in the order in which they are shown."""

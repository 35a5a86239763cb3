"""The registry of purposes: what a compressor is wanted for, and the figure by which the best one for it is found.

A compressor has three consumers: a decoder, a reader that is not retrained, and one that is. The best compressor for
one of them is rarely the best for another: window PCA without matched moments has the fvu of the matched one, and a
frozen reader cannot use it. So every output grid of a sweep has a champion per purpose. To add a purpose, add its entry
here.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Mapping
from dataclasses import dataclass

from tokconv.evaluation.baselines.registry import shown_in, title_of
from tokconv.evaluation.figure import LABELS, NEIGHBOURS, SAMPLES, SWEEP, VLM
from tokconv.evaluation.figures import FIGURES, VLM_KL
from tokconv.evaluation.protocol import MIN_NEIGHBOUR_IMAGES, MIN_TEST_IMAGES
from tokconv.system.registry import Registry

NEEDS = {
    "": "nothing",
    LABELS: "labels of training and held-out images",
    NEIGHBOURS: f"{MIN_NEIGHBOUR_IMAGES} held-out images",
    SAMPLES: f"{MIN_TEST_IMAGES} training and {MIN_TEST_IMAGES} held-out images",
    VLM: "a frozen vision-language model, which a sweep's spec names (vlm: {model: DIRECTORY})",
}
"""What a figure requires, in words."""

LIKENESS = (
    *("val/auc_token", "val/auc_token_white", "val/auc_grid", "val/auc_token_quick"),
    *("val/swd", "val/mmd"),
)
"""How compressed tokens differ from real ones, whatever image they are of."""


TIE = 1e-4
"""Two values of a figure that differ by less than this share are equal: a compressor that stands at its closed form is
no better than it, whatever the last bits say."""


def is_better(figure: str, value: float, other: float) -> bool:
    """Return whether one value of a figure is better than another; a tie is not."""
    better = value < other if FIGURES[figure].lower_is_better else value > other
    return better and not math.isclose(value, other, rel_tol=TIE)


def best_first(figure: str, names: Iterable[str], baselines: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return baselines that have a figure by its value, the best first.

    Of those that tie with the best one left, the ones that every table shows come first: window PCA has the error of
    matched PCA, whose tokens can also be read.
    """
    shown = {entry.name for entry in shown_in(SWEEP)}
    sign = 1 if FIGURES[figure].lower_is_better else -1
    left = sorted(names, key=lambda name: sign * baselines[name][figure])
    ordered: list[str] = []
    while left:
        # Ties are no order: of three values, the first and the second may tie, and so the second and the third.
        best = baselines[left[0]][figure]
        tied = [name for name in left if not is_better(figure, best, baselines[name][figure])]
        ordered += sorted(tied, key=lambda name: name not in shown)
        left = [name for name in left if name not in tied]
    return ordered


def compared_text(figure: str, value: float, baseline: str, other: float) -> str:
    """Return whether a value beats the best closed form, with both: `fvu 0.02 beats the best closed form, ...`."""
    entry = FIGURES[figure]
    verb = "beats" if is_better(figure, value, other) else "does not beat"
    return f"{entry.title} {entry.text(value)} {verb} the best closed form, {title_of(baseline)} ({entry.text(other)})"


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
        unbound: figures on which candidates need not keep the bound, because these themselves notice what is lost.
        proxies: figures that say nothing about content, also those that only a spec may choose. A selection of real
            tokens has the best token-likeness by construction, so only baselines that keep the bound compete on it.
        advice: what to try if no trial beats the baselines, as an imperative.
    """

    name: str
    meaning: str
    figures: tuple[str, ...]
    bound: Bound | None = None
    unbound: tuple[str, ...] = ()
    proxies: tuple[str, ...] = ()
    advice: str

    def figure(self, known: Container[str]) -> str | None:
        """Return the figure that decides where these figures exist; None if the purpose cannot be judged."""
        return next((name for name in self.figures if name in known), None)

    def limit(self, figure: str, baselines: Mapping[str, Mapping[str, float]]) -> float | None:
        """Return the value of the bound among the baselines of a grid.

        Args:
            figure: the one that decides.

        Returns:
            None without a bound, if this figure needs none, or if it is unknown.
        """
        if self.bound is None or figure in self.unbound:
            return None
        value = baselines.get(self.bound.baseline, {}).get(self.bound.figure)
        # The closed form that training starts at has the error of window PCA up to rounding.
        return None if value is None else value * (1 + TIE)

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
        name = self.figure(figures)
        assert name is not None
        limit = self.limit(name, baselines)
        bound = "" if self.bound is None else self.bound.figure
        rivals = self._rivals(name, baselines)
        as_good = tuple(rival for rival in rivals if not is_better(name, figures[name], baselines[rival][name]))
        return (limit if limit is not None and figures[bound] > limit else None), as_good

    def compared(self, figures: Mapping[str, float], baselines: Mapping[str, Mapping[str, float]]) -> str:
        """Return one line: whether a compressor beats the best closed form for this purpose, and what to do if not.

        Args:
            figures: the compressor's; those that decide must be among them.
            baselines: name -> figures, at its grid.
        """
        name, (exceeded, as_good) = self.figure(figures), self.standing(figures, baselines)
        assert name is not None
        if exceeded is not None and self.bound is not None:
            figure = FIGURES[self.bound.figure]
            rival = f"that of {title_of(self.bound.baseline)}, {figure.text(exceeded)}"
            has = f"{figure.title} {figure.text(figures[figure.name])}"
            return f"{self.name}: unfit, {has} is above {rival}; {self.bound.advice}"
        best = next(iter(self._rivals(name, baselines)), None)
        if best is None:
            return f"{self.name}: {FIGURES[name].title} {FIGURES[name].text(figures[name])}, no closed form to compare"
        text = f"{self.name}: {compared_text(name, figures[name], best, baselines[best][name])}"
        return f"{text}; {self.instead(best)}" if as_good else text

    def instead(self, baseline: str | None) -> str:
        """Return what to do if a compressor does not beat a closed form, as an imperative."""
        return self.advice if baseline is None else f"use {title_of(baseline)} as it is, or {self.advice}"

    def _rivals(self, name: str, baselines: Mapping[str, Mapping[str, float]]) -> tuple[str, ...]:
        """Return the baselines that compete at a figure, the best first."""
        limit, bound = self.limit(name, baselines), "" if self.bound is None else self.bound.figure
        rivals = [rival for rival, own in baselines.items() if name in own]
        if limit is not None and name in self.proxies:
            rivals = [rival for rival in rivals if baselines[rival].get(bound, math.inf) <= limit]
        return tuple(best_first(name, rivals, baselines))

    @property
    def missing(self) -> str:
        """Why a store cannot have this purpose, as a sentence."""
        of_store = (name for name in self.figures if FIGURES[name].needs != VLM)
        figures = (f"{name} (it needs {NEEDS[FIGURES[name].needs]})" for name in of_store)
        return f"{self.name}: left out, there is no {' and no '.join(figures)}"


FIDELITY, PLUG_IN = "fidelity", "plug-in"
_ENTRIES = (
    Purpose(
        name=FIDELITY,
        meaning="The decoder gets back as much of the tokens as possible.",
        figures=("val/fvu",),
        advice="train longer (training.epochs), lower training.learning_rate, or try another model.compressor.kind",
    ),
    Purpose(
        name=PLUG_IN,
        meaning="A reader of real tokens takes the compressed ones in their place, without being retrained.",
        figures=(VLM_KL, "val/reader_kept", "val/auc_token"),
        bound=Bound("val/fvu", "window_pca", "train longer (training.epochs), or lower loss.weights.wgan"),
        unbound=(VLM_KL,),
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

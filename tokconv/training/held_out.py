"""The held-out figures of a trial: the evaluation protocol at its grid, its baselines, and what a judge adds."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from tokconv.evaluation.baseline_figures import baseline_figures, is_measured
from tokconv.evaluation.baselines.registry import BASELINES, BESIDE_A_TRIAL
from tokconv.evaluation.codecs import NetworkCodec, codec_of
from tokconv.evaluation.evaluator import Evaluator, Figures, add_gain
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.store.reader import TokenStore
from tokconv.training.networks import select_grid, shown_baselines
from tokconv.training.step import Trainer

BaselineSteps = Callable[[int, int, str], None]


class Judge(Protocol):
    """Figures that cost too much for every epoch of every run, and are no part of the evaluation protocol."""

    def __call__(self, codec: NetworkCodec, /) -> Figures:
        """Return the figures of a compressor."""

    def baseline(self, grid: int, name: str) -> Figures:
        """Return those of a baseline."""


class HeldOutFigures:
    """The evaluation protocol at this trial's grid, with the gain over pooling.

    The first step waits for the baselines that every epoch is shown with; the others, and the figures of all of them
    that train networks, are measured before the last evaluation. For a compressor with several grids it also reports
    fvu and swd of the others, as `val/grid-04/fvu` and so on.

    Args:
        steps: called while figures of baselines are computed, as `baseline_figures` does with `steps`.
        judge: adds its figures to those of the last epoch, and of the best ones.
        judges_epochs: it adds them to those of every epoch, and of the baselines that these are shown with.
    """

    def __init__(
        self, trainer: Trainer, store: TokenStore, steps: BaselineSteps, judge: Judge | None, *, judges_epochs: bool
    ) -> None:
        self._baseline_steps, self._judge, self._judges_epochs = steps, judge, judges_epochs
        self.store, self.networks, self.grid = store, trainer.judged, trainer.compressor.output_grid_size
        self.evaluators = {grid: Evaluator(store, grid, trainer.device) for grid in trainer.compressor.grids}
        self._shown = shown_baselines(trainer.config)
        self._names = tuple(dict.fromkeys((*BESIDE_A_TRIAL, *self._shown)))
        names = [name for name in self._names if name in self._shown or is_measured(store, self.grid, BASELINES[name])]
        self.baselines = self._judged(baseline_figures(store, self.grid, names, full=False, steps=steps))

    def __call__(self, *, full: bool) -> Figures:
        """Return the figures of the trial's networks; full: with those that train networks, of the baselines too."""
        if full:
            measured = baseline_figures(self.store, self.grid, self._names, steps=self._baseline_steps)
            self.baselines = self._judged(measured)
        return self.of(*self.networks, full=full)

    def of(self, compressor: Compressor, decoder: Decoder, *, full: bool) -> Figures:
        """Return the figures of a compressor and its decoder, which have the grids of the trial's."""
        found = {}
        for grid, evaluator in self.evaluators.items():
            select_grid(compressor, decoder, grid)
            found[grid] = evaluator.evaluate(codec_of(compressor, decoder), full=full and grid == self.grid)
        select_grid(compressor, decoder, self.grid)
        figures = add_gain(found.pop(self.grid), self.baselines["pooling"])
        for grid, others in found.items():
            figures |= {f"val/grid-{grid:02d}/{name}": others[f"val/{name}"] for name in ("fvu", "swd")}
        if self._judge is not None and (full or self._judges_epochs):
            figures |= self._judge(codec_of(compressor, decoder))
        return figures

    def _judged(self, baselines: dict[str, Figures]) -> dict[str, Figures]:
        if self._judge is None or not self._judges_epochs:
            return baselines
        more = {name: self._judge.baseline(self.grid, name) for name in baselines if name in self._shown}
        return {name: {**figures, **more.get(name, {})} for name, figures in baselines.items()}

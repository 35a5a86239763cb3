"""Which epoch of a run is the best one. Importing this module does not import torch."""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from typing import Protocol

from tokconv.evaluation.figures import FIGURES, VLM_KL


class Limit(Protocol):
    """What an epoch has to meet, such as `val/fvu <= 0.1`."""

    @property
    def metric(self) -> str:
        """The figure that is limited."""

    def met(self, figures: Mapping[str, float]) -> bool:
        """Return whether these figures meet it."""


@dataclass(frozen=True)
class EpochRule:
    """Which epoch of a run is the best: of those within the limits, the one with the best figure.

    Args:
        figure: one that every epoch has, or the judge's (`tokconv.training.loop.run_trial`); equal ones are told apart
            by fvu, then the earlier epoch is taken.
        limits: those on figures that only the last epoch has decide nothing here.
    """

    figure: str
    limits: tuple[Limit, ...] = ()

    def cost(self, figures: Mapping[str, float]) -> tuple[int, float, float]:
        """Return a sort key of epochs, the best first."""
        broken = sum(FIGURES[limit.metric].every_epoch and not limit.met(figures) for limit in self.limits)
        value = figures[self.figure]
        return broken, value if FIGURES[self.figure].lower_is_better else -value, figures["val/fvu"]


LOWEST_FVU = EpochRule("val/fvu")
"""The rule of fidelity, and of runs outside a sweep."""
LOWEST_KL = EpochRule(VLM_KL)
"""The rule of runs outside a sweep that a vision-language model teaches."""


def run_rule(best: Container[str]) -> EpochRule:
    """Return the rule that a run outside a sweep compared its epochs by; `best` has the figures of its best epochs."""
    return LOWEST_KL if VLM_KL in best and LOWEST_FVU.figure not in best else LOWEST_FVU

"""The baselines of a sweep: which figures they get, and what the model that judges says of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from tokconv.config.tree import Config
from tokconv.evaluation.baselines.registry import BESIDE_A_TRIAL
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore
from tokconv.sweep.judge.verdicts import competitors
from tokconv.sweep.record.checks import figures_of
from tokconv.sweep.spec.schema import Spec
from tokconv.system.terminal import progress_line
from tokconv.training.baselines import measure_baselines

if TYPE_CHECKING:
    from tokconv.exports.answers.judge import VlmJudge

Baselines = Mapping[int, Mapping[str, Figures]]
"""Grid -> baseline -> figures."""


def measure(
    spec: Spec, store: TokenStore, grids: Sequence[int], *, config: Config, judge: VlmJudge | None
) -> Baselines:
    """Return the figures of every baseline, from the store's cache or computed now."""
    if spec.baselines == "all":
        found = measure_baselines(store, grids, config=config)
    else:
        known, rules = figures_of(spec, store), spec.rules

        def in_full(grid: int, quick: Mapping[str, Figures]) -> set[str]:
            # Trials show the latter beside themselves and would measure them.
            return {*competitors(rules, quick, known), *BESIDE_A_TRIAL}

        found = measure_baselines(store, grids, config=config, in_full=in_full)
    if judge is None:
        return found
    with progress_line("baselines, read by the model") as line:
        return judge.add_to(found, line)

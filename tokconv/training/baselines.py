"""The baselines of a store at some grids: what they need is encoded first, then each is measured."""

from __future__ import annotations

from collections.abc import Sequence

from tokconv.config.tree import Config
from tokconv.encoding.downsampled import add_downsampled
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import progress_line


def measure_baselines(
    store: TokenStore, grids: Sequence[int], *, config: Config | None = None, device: str | None = None
) -> dict[int, dict[str, Figures]]:
    """Return the figures of every baseline at these grids, with their progress on the console.

    If there are no downsampled images, one printed sentence says why, and that baseline is left out.

    Args:
        config: names the images and the tower; None takes those that were noted when the store was encoded.
        device: where the tower encodes downsampled images; None takes CUDA if there is one.

    Raises:
        ConfigError, StoreError: as `baseline_figures`.
    """
    found, reasons, done = {}, [], 0
    with progress_line("baselines") as line:

        def measured(name: str) -> None:
            nonlocal done
            done += 1
            line(min(done, len(grids) * len(BASELINES)), len(grids) * len(BASELINES), name)

        for grid in grids:
            reason = add_downsampled(store, grid, needed_images(store), config=config, device=device)
            reasons += [reason] if reason else []
            found[grid] = baseline_figures(store, grid, progress=measured)
            done += bool(reason)
    if reasons:
        print(f"no baseline of downsampled images: {reasons[0]}")
    return found

"""The baselines of a store at some grids: what they need is encoded first, then each is measured."""

from __future__ import annotations

from collections.abc import Sequence

from tokconv.config.tree import Config
from tokconv.encoding.downsampled import add_downsampled
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.codecs import available
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.evaluation.evaluator import Figures
from tokconv.models.windows import check_output_grid
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
    for grid in grids:
        check_output_grid(grid, store.token_grid)
        with progress_line(f"downsampled images, {grid}x{grid}") as line:
            reason = add_downsampled(store, grid, needed_images(store), config=config, device=device, progress=line)
        reasons += [reason] if reason else []
    with progress_line("baselines") as line:

        def measured(name: str) -> None:
            nonlocal done
            done += 1
            line(done, total, name)

        total = sum(len(available(store, grid)) for grid in grids)
        for grid in grids:
            found[grid] = baseline_figures(store, grid, progress=measured)
    if reasons:
        print(f"no baseline of downsampled images: {reasons[0]}")
    return found

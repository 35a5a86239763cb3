"""The baselines of a store at some grids: what they need is encoded first, then each is measured.

A second process measures them from the other end, because the networks that judge are too small for several threads.
What either has measured lies beside the store, where the other finds it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tokconv.config.tree import Config
from tokconv.encoding.downsampled import add_downsampled
from tokconv.evaluation.baseline_figures import baseline_figures, is_measured
from tokconv.evaluation.baselines.codecs import available
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.evaluation.evaluator import Figures
from tokconv.models.windows import check_output_grid
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import progress_line

WORTHWHILE_SECONDS = 30.0
"""With less work left, a second process would hardly have started."""


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
    every = [(grid, entry) for grid in grids for entry in available(store, grid)]
    missing = sum(not is_measured(store, grid, entry) for grid, entry in every)
    with progress_line("baselines") as line, ExitStack() as cleanup:
        start, helped = time.monotonic(), False

        def measured(name: str) -> None:
            nonlocal done, helped
            done += 1
            line(done, len(every), name)
            if helped or (os.cpu_count() or 1) < 2:
                return
            # Those that were measured before took no time.
            left = sum(not is_measured(store, grid, entry) for grid, entry in every)
            seconds_each = (time.monotonic() - start) / max(1, missing - left)
            if left < missing and left * seconds_each > WORTHWHILE_SECONDS:
                cleanup.enter_context(_from_the_other_end(store, grids))
                helped = True

        for grid in grids:
            found[grid] = baseline_figures(store, grid, progress=measured)
    if reasons:
        print(f"no baseline of downsampled images: {reasons[0]}")
    return found


@contextmanager
def _from_the_other_end(store: TokenStore, grids: Sequence[int]) -> Iterator[subprocess.Popen[bytes]]:
    """Run `_measure_backwards` in a process of its own meanwhile."""
    code = f"from {__name__} import _measure_backwards; _measure_backwards()"
    # With as many threads as here, because the last bit of a figure depends on them.
    arguments = [str(store.path), store.fingerprint, str(torch.get_num_threads()), *map(str, grids)]
    # Its failures are left to this process, which meets them at the same baseline.
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait()


def _measure_backwards() -> None:
    """Measure the baselines of the store and the grids of the command line, the last of the last grid first."""
    path, fingerprint, threads, *grids = sys.argv[1:]
    torch.set_num_threads(int(threads))
    store = TokenStore.open(Path(path), fingerprint=fingerprint)
    for grid in map(int, reversed(grids)):
        baseline_figures(store, grid, [entry.name for entry in reversed(available(store, grid))])

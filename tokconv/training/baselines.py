"""The baselines of a store at some grids: what they need is encoded first, then each is measured.

A second process measures them from the other end, because the networks that judge are too small for several threads.
What either has measured lies beside the store, where the other finds it.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import torch

from tokconv.config.tree import Config
from tokconv.encoding.downsampled import add_downsampled
from tokconv.evaluation.baseline_figures import baseline_figures, is_measured
from tokconv.evaluation.baselines.codecs import available
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.evaluator import Figures
from tokconv.models.windows import check_output_grid
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import progress_line

WORTHWHILE_SECONDS = 30.0
"""With less work left, a second process would hardly have started."""

InFull = Callable[[int, Mapping[str, Figures]], Collection[str]]
"""Output grid and the cheap figures of all its baselines -> the baselines that need the others too."""


def measure_baselines(
    store: TokenStore,
    grids: Sequence[int],
    *,
    config: Config | None = None,
    device: str | None = None,
    in_full: InFull | None = None,
) -> dict[int, dict[str, Figures]]:
    """Return the figures of every baseline at these grids, with their progress on the console.

    If there are no downsampled images, one printed sentence says why, and that baseline is left out.

    Args:
        config: names the images and the tower; None takes those that were noted when the store was encoded.
        device: where the tower encodes downsampled images; None takes CUDA if there is one.
        in_full: which baselines get the figures that train networks, nine tenths of the time; None: all. The others
            have them only if they were measured before.

    Raises:
        ConfigError, StoreError: as `baseline_figures`.
    """
    reasons = []
    for grid in grids:
        check_output_grid(grid, store.token_grid)
        with progress_line(f"downsampled images, {grid}x{grid}") as line:
            reason = add_downsampled(store, grid, needed_images(store), config=config, device=device, progress=line)
        reasons += [reason] if reason else []
    names = {grid: [entry.name for entry in available(store, grid)] for grid in grids}
    if in_full is None:
        found = _measure(store, names, full=True)
    else:
        found = _measure(store, names, full=False)
        wanted = {grid: in_full(grid, found[grid]) for grid in grids}
        chosen = {grid: [name for name in names[grid] if name in wanted[grid]] for grid in grids}
        whole = _measure(store, chosen, full=True)
        found = {grid: found[grid] | whole[grid] for grid in grids}
    if reasons:
        print(f"no baseline of downsampled images: {reasons[0]}")
    return found


def _measure(store: TokenStore, names: Mapping[int, Sequence[str]], *, full: bool) -> dict[int, dict[str, Figures]]:
    """Return the figures of some baselines at each grid."""
    every = [(grid, BASELINES[name]) for grid, chosen in names.items() for name in chosen]

    def to_do() -> int:
        return sum(not is_measured(store, grid, entry, full=full) for grid, entry in every)

    missing = left = to_do()
    # Quick figures have no time left: each grid begins with its fits, which take longer than they.
    with progress_line("baselines" if full else "baselines, quick figures") as line, ExitStack() as cleanup:
        start, helped, paced, shown = time.monotonic(), False, full, -1

        def measured(name: str) -> None:
            nonlocal left, helped, paced, shown
            before, left = left, to_do()
            if not helped and left < missing and (os.cpu_count() or 1) > 1:
                # Those that were measured before took no time.
                helped = left * (time.monotonic() - start) / (missing - left) > WORTHWHILE_SECONDS
                if helped:
                    cleanup.enter_context(_from_the_other_end(store, names, full=full))
                    # The pace of one process says nothing about that of two.
                    paced = False
            # More than one since the last time: the other process is at work as well.
            paced = paced or (full and before - left > 1)
            if left != shown:
                shown = left
                line(len(every) - left, len(every), name, timed=paced)

        return {
            grid: baseline_figures(
                store, grid, chosen, full=full, progress=measured, steps=lambda done, total, what: line.doing(what)
            )
            for grid, chosen in names.items()
        }


@contextmanager
def _from_the_other_end(
    store: TokenStore, names: Mapping[int, Sequence[str]], *, full: bool
) -> Iterator[subprocess.Popen[bytes]]:
    """Run `_measure_backwards` in a process of its own meanwhile."""
    code = f"from {__name__} import _measure_backwards; _measure_backwards()"
    # With as many threads as here, because the last bit of a figure depends on them.
    work = {"threads": torch.get_num_threads(), "names": list(names.items()), "full": full}
    arguments = [str(store.path), store.fingerprint, json.dumps(work)]
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
    """Measure the baselines of the store that the command line names, the last of the last grid first."""
    path, fingerprint, work = sys.argv[1:]
    given = json.loads(work)
    torch.set_num_threads(given["threads"])
    store = TokenStore.open(Path(path), fingerprint=fingerprint)
    for grid, names in reversed(given["names"]):
        baseline_figures(store, grid, names[::-1], full=given["full"])

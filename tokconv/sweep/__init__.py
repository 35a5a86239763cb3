"""Many trials, one judgement: spec, search, early stopping, tracking, report.

load(name)    every trial of a sweep as a pandas DataFrame
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tokconv.errors import require_extra

if TYPE_CHECKING:
    import pandas

__all__ = ["load"]

require_extra(
    "sweep",
    "ray",
    "optuna",
    "mlflow",
    "pandas",
    "rich",
    "matplotlib",
    "scipy",
    "plotly",
    "psutil",
    "pydantic",
    "moocore",
    "jinja2",
    "markdown_it",
)


def load(name: str | Path, storage: str = "runs") -> pandas.DataFrame:
    """Return every trial and confirmation of a sweep, finished or not, in the columns of its `report/results.csv`.

    Args:
        name: a spec's name (its newest run), a run's own name (`demo-001`), or a path.
        storage: the spec's `storage`, where a name is looked up.

    Raises:
        SweepError: there is no such sweep, or its record is damaged.

    Example:
        >>> frame = tokconv.sweep.load("demo")                              # doctest: +SKIP
        >>> frame[frame.champion][["ratio", "val/fvu_mean", "val/fvu_half_width"]]   # doctest: +SKIP
    """
    from tokconv.sweep.judge.snapshot import find_sweep, read_sweep
    from tokconv.sweep.report.results import results_frame

    return results_frame(read_sweep(find_sweep(name, storage)))

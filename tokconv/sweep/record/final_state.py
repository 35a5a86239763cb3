"""The final state of a trial, read from its last result: one rule for the study, the record and the table."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

FAILURE = "failure"
"""Key of a result that holds the reason of a trial that ended itself, such as a diverged one."""
FinalState = Literal["complete", "pruned", "failed"]
"""How a trial ended, in the words of the record."""


def final_state(result: Mapping[str, Any] | None, *, error: bool, judged_by: Iterable[str]) -> FinalState:
    """Return complete if the last epoch was reported, pruned if the trial was stopped before it, else failed.

    Args:
        result: the last result that Ray Tune has; `epoch` and `epochs` are our own counts.
        error: whether Ray Tune counts the trial as errored.
        judged_by: the objectives' figures; a trial that ends without one of them cannot be judged and has failed.
    """
    if error or not result or FAILURE in result or "epoch" not in result:
        return "failed"
    if result["epoch"] < result["epochs"]:
        return "pruned"
    return "failed" if missing_objectives(result, judged_by) else "complete"


def missing_objectives(result: Mapping[str, Any], judged_by: Iterable[str]) -> list[str]:
    """Return the objectives' figures that a result lacks. One that is not finite is no figure: the record drops it."""
    return [name for name in judged_by if not math.isfinite(result.get(name, math.nan))]

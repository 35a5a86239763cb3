"""How a trial ended, read from its last result: one rule for the study, the record and the table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import Enum
from typing import Any

FAILURE = "failure"
"""Result key with the reason of a trial that ended itself, such as a diverged one."""


class FinalState(Enum):
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


def final_state(result: Mapping[str, Any] | None, *, error: bool, judged_by: Iterable[str]) -> FinalState:
    """A trial is complete when its last epoch was reported, pruned when it was stopped before, else failed.

    Args:
        result: the last result Ray Tune has; `epoch` and `epochs` are ours.
        error: whether Ray Tune counts the trial as errored.
        judged_by: the objectives' figures; a trial that ran to its end without one of them cannot be judged: failed.
    """
    if error or not result or FAILURE in result or "epoch" not in result:
        return FinalState.FAILED
    if result["epoch"] < result["epochs"]:
        return FinalState.PRUNED
    return FinalState.FAILED if missing_objectives(result, judged_by) else FinalState.COMPLETE


def missing_objectives(result: Mapping[str, Any], judged_by: Iterable[str]) -> list[str]:
    """The objectives' figures that a result lacks."""
    return [name for name in judged_by if name not in result]

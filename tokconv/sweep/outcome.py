"""How a trial ended, read from its last result: one rule for the study, the record and the table."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Any

FAILURE = "failure"
"""Result key with the reason of a trial that ended itself, such as a diverged one."""


class Outcome(Enum):
    COMPLETE = "complete"
    PRUNED = "pruned"
    FAILED = "failed"


def outcome(result: Mapping[str, Any] | None, *, error: bool) -> Outcome:
    """A trial is complete when its last epoch was reported, pruned when it was stopped before, else failed.

    Args:
        result: the last result Ray Tune has; `epoch` and `epochs` are ours.
        error: whether Ray Tune counts the trial as errored.
    """
    if error or not result or FAILURE in result or "epoch" not in result:
        return Outcome.FAILED
    return Outcome.COMPLETE if result["epoch"] >= result["epochs"] else Outcome.PRUNED

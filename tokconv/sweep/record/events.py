"""The events of a sweep, and the trials that they describe.

Their log (`tokconv.sweep.record.log`) is the one source of truth. Resuming, the final table and MLflow are all derived
from it, so none of them depends on a pickle of Ray Tune's or on a tracking server that is up.

    sweep_started    sweep, spec, store_fingerprint, protocol, git_commit, token_grid, ...
    trial_started    trial, values (searched keys), grid, ratio; of a confirmation also kind=confirm, confirms (a trial)
    trial_reported   trial, epoch, figures, checkpoint, best (with the last epoch)
    trial_ended      trial, state (complete | pruned | failed), reason
    trial_artifacts  trial, path (a directory to upload)
    point_refused    point (its number in the study), values, reason: an invalid combination, of which no trial starts
    sweep_ended      champions (grid -> purpose -> what was exported), winners (grid -> trial -> its purposes with their
                     evidence), artifacts (a directory to upload)

Every event also has `time`, in milliseconds since 1970. Paths are relative to the sweep's directory
(`tokconv.sweep.record.layout.relative_place`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokconv.errors import SweepError
from tokconv.sweep.record.figures import BEST, interned
from tokconv.sweep.record.layout import relative_place
from tokconv.sweep.spec.outline import GRID_KEY

Event = dict[str, Any]
FINISHED = ("complete", "pruned", "failed")
INVALID = "invalid"
"""Counted next to the states of trials: points of the search that no config can have."""


@dataclass(frozen=True)
class RefusedPoint:
    """A combination of searched values that no config can have."""

    uid: str
    values: dict[str, Any]
    reason: str


@dataclass
class TrialRecord:
    """One trial as its events describe it."""

    uid: str
    values: dict[str, Any]
    """The searched keys; for a confirmation also its `training.seed`."""
    grid: int
    """Output grid size k."""
    ratio: float
    """Tokens in / tokens out."""
    started: int
    """Milliseconds since 1970."""
    confirms: str | None = None
    """The trial that this one repeats with another seed; None for a trial of the search."""
    state: str = "running"
    """running, complete, pruned (stopped early) or failed."""
    reason: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    """The figures of each epoch, in order, each epoch once; the first are those of the start, epoch 0. Records of
    earlier versions begin with epoch 1."""
    best: dict[str, dict[str, float]] = field(default_factory=dict)
    """Figure -> figures of the best epoch by it, which its checkpoint holds; empty until the last epoch."""
    checkpoint: str | None = None
    """Relative to the sweep, see `SweepDirectory.place`."""
    ended: int | None = None
    paused: int = 0
    """Milliseconds from its last event before an interruption to its next start, over all interruptions."""
    last: int | None = None
    """When its last event was written; None before the first."""
    has_artifacts: bool = False
    """Whether its compressor was exported and its picture drawn."""

    @property
    def figures(self) -> dict[str, float]:
        """The figures of the last epoch; empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def epochs_done(self) -> int:
        """The epochs that it has trained; 0 at its start."""
        return int(self.figures.get("epoch", 0))

    @property
    def seconds(self) -> float | None:
        """Seconds from its first start to its end, without pauses; None until it ends."""
        return None if self.ended is None else (self.ended - self.started - self.paused) / 1000

    def apply(self, event: Event) -> None:
        """Change the trial by one of its events."""
        if event["event"] == "trial_started":
            self.paused += 0 if self.last is None else event["time"] - self.last
            self.state, self.reason, self.ended = "running", "", None
        elif event["event"] == "trial_reported":
            # A trial that resumed from an older checkpoint reports some epochs again.
            figures = interned(event["figures"]) | {"epoch": event["epoch"]}
            self.history = [row for row in self.history if row["epoch"] < event["epoch"]] + [figures]
            self.best = {name: interned(row) for name, row in event.get(BEST, {}).items()}
            if (place := event.get("checkpoint")) is not None:
                self.checkpoint = relative_place(place)
        elif event["event"] == "trial_artifacts":
            self.has_artifacts = True
        elif event["event"] == "trial_ended":
            self.state, self.reason, self.ended = event["state"], event.get("reason", ""), event["time"]
        # Other events, of exports and answers, come when it no longer runs.
        if event["event"] in ("trial_started", "trial_reported", "trial_ended"):
            self.last = event["time"]


class Trials:
    """The trials and confirmations of a sweep, built up from its events.

    Args:
        path: the record; error messages name it.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        # Two dictionaries, so that nothing that reads the search's trials can mistake a confirmation for one of them.
        self.trials: dict[str, TrialRecord] = {}
        self.confirmations: dict[str, TrialRecord] = {}
        self.refused: dict[str, RefusedPoint] = {}
        """Points that no trial was started for, by their uid in the study."""
        self._token_grid: int | None = None

    def apply(self, event: Event) -> None:
        """Change the trials by one event; an event that is not about a trial changes none.

        Raises:
            SweepError: the trial was never started, or its grid is unknown.
        """
        if event["event"] == "sweep_started":
            self._token_grid = event.get("token_grid")
        elif event["event"] == "point_refused":
            self.refused[event["point"]] = RefusedPoint(event["point"], event["values"], event["reason"])
        uid = event.get("trial")
        if uid is None:
            return
        found = self.confirmations.get(uid) or self.trials.get(uid)
        if found is None:
            self.check(event)
            confirms = event.get("confirms")
            found = TrialRecord(uid, event["values"], self._grid(event), event["ratio"], event["time"], confirms)
            (self.trials if confirms is None else self.confirmations)[uid] = found
        found.apply(event)

    def check(self, event: Event) -> None:
        """Raise SweepError if the event is about a trial that was never started, or starts one of an unknown grid."""
        uid = event.get("trial")
        if uid is None or uid in self.trials or uid in self.confirmations:
            return
        if event["event"] != "trial_started":
            raise SweepError(f"{self.path}: {event['event']} of trial {uid}, which was never started")
        self._grid(event)

    def find(self, uid: str) -> TrialRecord:
        """Return a trial or a confirmation by its uid. Raises KeyError."""
        return self.confirmations[uid] if uid in self.confirmations else self.trials[uid]

    def _grid(self, event: Event) -> int:
        """Return the output grid of a trial that starts. Events of 0.1.0 hold only the ratio."""
        grid = event.get("grid", event["values"].get(GRID_KEY))
        if grid is not None:
            return int(grid)
        if self._token_grid is None:
            raise SweepError(f"{self.path}: trial {event['trial']} has no grid, and no sweep_started event precedes it")
        return round(self._token_grid / event["ratio"] ** 0.5)

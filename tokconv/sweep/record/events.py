"""The sweep's own record: every event, appended to `events.jsonl`, and the trials as the events tell them.

It is the one source of truth. Resuming, the final table and MLflow are all derived from it, so none of them depends on
a pickle of Ray Tune's or on a tracking server being up.

    sweep_started    sweep, spec, store_fingerprint, protocol, git_commit, ...
    trial_started    trial, values (searched keys), ratio; of a confirmation also kind=confirm, confirms (a trial)
    trial_reported   trial, epoch, figures, checkpoint
    trial_ended      trial, state (complete | pruned | failed), reason
    trial_artifacts  trial, path (a directory to upload)
    sweep_ended      champions (grid -> what was exported), artifacts (a directory to upload)

Every event also carries `time`, milliseconds since the epoch.
"""

from __future__ import annotations

import errno
import json
import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokconv.errors import SweepError

Event = dict[str, Any]
FINISHED = ("complete", "pruned", "failed")
KEPT = ("val/", "train/", "critic/")
ALSO_KEPT = ("epoch", "epochs", "compression_ratio")


@dataclass
class TrialRecord:
    """One trial as the events tell it."""

    uid: str
    values: dict[str, Any]
    """The searched keys; of a confirmation also its `training.seed`."""
    ratio: float
    """Tokens in / tokens out."""
    started: int
    confirms: str | None = None
    """The trial that this one repeats with another seed; None for a trial of the search."""
    state: str = "running"
    """running, complete, pruned (stopped early) or failed."""
    reason: str = ""
    history: list[dict[str, float]] = field(default_factory=list)
    """Figures of each epoch, in order, each epoch once."""
    checkpoint: str | None = None
    ended: int | None = None
    has_artifacts: bool = False
    """Whether its compressor was exported and its picture drawn."""

    @property
    def figures(self) -> dict[str, float]:
        """Figures of the last epoch; empty before the first."""
        return self.history[-1] if self.history else {}

    @property
    def seconds(self) -> float | None:
        """From its first start to its end, pauses included; None before it ended."""
        return None if self.ended is None else (self.ended - self.started) / 1000

    def apply(self, event: Event) -> None:
        """Take in one event of this trial."""
        if event["event"] == "trial_started":
            self.state, self.reason, self.ended = "running", "", None
        elif event["event"] == "trial_reported":
            # A trial that resumed from an older checkpoint reports some epochs again.
            # A name is the same text in every event, and text takes more room than a number.
            figures = {sys.intern(name): value for name, value in event["figures"].items()} | {"epoch": event["epoch"]}
            self.history = [row for row in self.history if row["epoch"] < event["epoch"]] + [figures]
            self.checkpoint = event.get("checkpoint") or self.checkpoint
        elif event["event"] == "trial_artifacts":
            self.has_artifacts = True
        elif event["event"] == "trial_ended":
            self.state, self.reason, self.ended = event["state"], event.get("reason", ""), event["time"]


class Record:
    """Append-only event log of one sweep.

    Args:
        path: `events.jsonl`; created when missing, read when present. A last line torn by a crash is dropped.

    Raises:
        SweepError: a damaged line that is not the last one, or one that is no event of a trial that was started.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        # Apart, so that nothing that reads the search's trials can take a confirmation for one of them.
        self.trials: dict[str, TrialRecord] = {}
        self.confirmations: dict[str, TrialRecord] = {}
        whole = 0
        for event, end in read_events(self.path):
            self._apply(event)
            whole = end
        self._file = self.path.open("ab", buffering=0)
        self._file.truncate(whole)

    def append(self, event: str, **fields: Any) -> Event:
        """Write one event through to the disk, then apply it. Thread-safe.

        Raises:
            ValueError: a figure is NaN or infinite; nothing was written.
            SweepError: the trial was never started; nothing was written.
            OSError: the disk is full or gone; what was written of the event is taken back.
        """
        entry: Event = {"event": event, "time": int(time.time() * 1000), **fields}
        line = json.dumps(entry, allow_nan=False, separators=(",", ":")).encode() + b"\n"
        with self._lock:
            self._check(entry)
            self._write(line)
            self._apply(entry)
        return entry

    def unfinished(self) -> list[TrialRecord]:
        """Trials, and confirmations, that were running when the sweep stopped."""
        with self._lock:
            both = (*self.trials.values(), *self.confirmations.values())
            return [trial for trial in both if trial.state == "running"]

    def find(self, uid: str) -> TrialRecord:
        """A trial or a confirmation by its uid. Raises KeyError."""
        return self.confirmations[uid] if uid in self.confirmations else self.trials[uid]

    def close(self) -> None:
        self._file.close()

    def _check(self, event: Event) -> None:
        uid = event.get("trial")
        known = uid in self.trials or uid in self.confirmations
        if uid is not None and not known and event["event"] != "trial_started":
            raise _never_started(event, self.path)

    def _write(self, line: bytes) -> None:
        whole = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            # Half a line would glue itself to the next event and damage the log for good.
            self._file.truncate(whole)
            raise

    def _apply(self, event: Event) -> None:
        if event.get("trial") is not None:
            take_in(event, self.trials, self.confirmations, self.path)


def read_trials(path: Path) -> list[TrialRecord]:
    """The search's trials as a record tells them, which may be in use: nothing is written.

    Raises:
        SweepError: the record is damaged.
    """
    trials: dict[str, TrialRecord] = {}
    for event, _ in read_events(path):
        if "trial" in event:
            take_in(event, trials, {}, path)
    return list(trials.values())


def take_in(
    event: Event, trials: dict[str, TrialRecord], confirmations: dict[str, TrialRecord], path: Path | str
) -> None:
    """Apply an event of a trial to it; one that starts is added to the search's trials or to the confirmations.

    Raises:
        SweepError: the trial was never started.
    """
    uid = event["trial"]
    found = confirmations.get(uid) or trials.get(uid)
    if found is None:
        if event["event"] != "trial_started":
            raise _never_started(event, path)
        found = _started(event)
        (trials if found.confirms is None else confirmations)[uid] = found
    found.apply(event)


def _never_started(event: Event, path: Path | str) -> SweepError:
    return SweepError(f"{path}: {event['event']} of trial {event['trial']}, which was never started")


def _started(event: Event) -> TrialRecord:
    return TrialRecord(event["trial"], event["values"], event["ratio"], event["time"], confirms=event.get("confirms"))


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Whole events from a byte offset on, each with the offset after it; a torn last line is left for later.

    Raises:
        SweepError: a whole line that is no event.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            yield _parse(line, path, offset), offset


def _parse(line: bytes, path: Path, end: int) -> Event:
    try:
        event = json.loads(line)
    except ValueError:
        event = None
    if not isinstance(event, dict) or "event" not in event:
        raise SweepError(f"{path}: damaged before byte {end}; restore it from a backup")
    return event


def kept_figures(result: Mapping[str, Any]) -> dict[str, float]:
    """What the record keeps of an epoch's result."""
    return finite({k: v for k, v in result.items() if k.startswith(KEPT) or k in ALSO_KEPT})


def finite(figures: Mapping[str, float]) -> dict[str, float]:
    """The figures that are finite numbers: JSON and MLflow have no other."""
    return {name: float(value) for name, value in figures.items() if abs(float(value)) < float("inf")}

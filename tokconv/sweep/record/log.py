"""The sweep's own record: every event, appended to `events.jsonl`."""

from __future__ import annotations

import errno
import json
import os
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import SweepError
from tokconv.sweep.record.events import Event, TrialRecord, Trials
from tokconv.sweep.record.figures import BEST, recorded_figures
from tokconv.sweep.record.layout import relative_place


class Record(Trials):
    """The append-only event log of one sweep.

    Args:
        path: `events.jsonl`; created if it is missing, read if it exists. A last line torn by a crash is dropped.

    Raises:
        SweepError: a damaged line that is not the last one, or an event of a trial that was never started.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        whole = 0
        for event, end in read_events(self.path):
            self.apply(event)
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
            self.check(entry)
            self._write(line)
            self.apply(entry)
        return entry

    def append_report(self, uid: str, result: Mapping[str, Any], checkpoint: str | None) -> None:
        """Write what a trial reported after an epoch, see `append`."""
        figures, place = recorded_figures(result), checkpoint and relative_place(checkpoint)
        best = {name: recorded_figures(row) for name, row in result.get(BEST, {}).items()}
        more = {BEST: best} if best else {}
        self.append("trial_reported", trial=uid, epoch=result["epoch"], figures=figures, checkpoint=place, **more)

    def unfinished(self) -> list[TrialRecord]:
        """Return the trials and confirmations that were running when the sweep stopped."""
        with self._lock:
            both = (*self.trials.values(), *self.confirmations.values())
            return [trial for trial in both if trial.state == "running"]

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def _write(self, line: bytes) -> None:
        whole = os.fstat(self._file.fileno()).st_size
        try:
            if self._file.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
            os.fsync(self._file.fileno())
        except OSError:
            # Half a line would run into the next event and damage the log for good.
            self._file.truncate(whole)
            raise


def read_trials(path: Path) -> list[TrialRecord]:
    """Return the search's trials from a record, which may be in use: nothing is written.

    Raises:
        SweepError: the record is damaged.
    """
    found = Trials(path)
    for event, _ in read_events(path):
        found.apply(event)
    return list(found.trials.values())


def read_events(path: Path, offset: int = 0) -> Iterator[tuple[Event, int]]:
    """Yield whole events from a byte offset on, each with the offset after it; a torn last line is left for later.

    Raises:
        SweepError: a whole line is not an event.
    """
    if not path.exists():
        return
    with path.open("rb") as file:
        file.seek(offset)
        for line in file:
            if not line.endswith(b"\n"):
                return
            offset += len(line)
            try:
                event = json.loads(line)
            except ValueError:
                event = None
            if not isinstance(event, dict) or "event" not in event:
                raise SweepError(f"{path}: damaged before byte {offset}; restore it from a backup")
            yield event, offset

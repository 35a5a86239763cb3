"""What a tracking writer knows about a sweep: the record up to the event at hand."""

from __future__ import annotations

from pathlib import Path

from tokconv.evaluation.protocol import protocol_of
from tokconv.sweep.record.events import Event, TrialRecord, Trials, read_events


class Replay:
    """A record, read from its first event: what trials are may stand far before the events to deliver.

    Args:
        events: the record's file.
    """

    def __init__(self, events: Path) -> None:
        self.born = 0
        """When the sweep was first started, in milliseconds since 1970: part of its identity on a server."""
        self.protocol = 1
        self.token_grid = 0
        self._trials = Trials(events)
        for event, _ in read_events(events):
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event; taking in an event again changes nothing for those that follow."""
        self.born = self.born or event["time"]
        if event["event"] == "sweep_started":
            self.protocol, self.token_grid = protocol_of(event), event["token_grid"]
        self._trials.apply(event)
        if event["event"] == "trial_reported":
            # Only the last report is needed, and those of ten thousand trials would fill the memory.
            del self.trial(event["trial"]).history[:-1]

    def trial(self, uid: str) -> TrialRecord:
        """Return a trial or a confirmation, with its last report alone."""
        return self._trials.find(uid)

"""What a tracking writer knows about a sweep: the record up to the event at hand."""

from __future__ import annotations

from pathlib import Path

from tokconv.evaluation.protocol import protocol_of
from tokconv.sweep.record.events import Event, Trials
from tokconv.sweep.record.log import read_events


class Replay(Trials):
    """A record, read from its first event: what trials are may stand far before the events to deliver.

    Args:
        events: the record's file.
    """

    def __init__(self, events: Path) -> None:
        super().__init__(events)
        self.born = 0
        """When the sweep was first started, in milliseconds since 1970: part of its identity on a server."""
        self.protocol = 1
        self.token_grid = 0
        for event, _ in read_events(events):
            self.apply(event)

    def apply(self, event: Event) -> None:
        """Take in one event; taking in an event again changes nothing for those that follow."""
        self.born = self.born or event["time"]
        if event["event"] == "sweep_started":
            self.protocol, self.token_grid = protocol_of(event), event["token_grid"]
        super().apply(event)
        if event["event"] == "trial_reported":
            # Only the last report is needed, and those of ten thousand trials would fill the memory.
            del self.find(event["trial"]).history[:-1]

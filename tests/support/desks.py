"""A listener on a real record; a test plays Ray Tune's part."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tokconv.sweep.record.events import Event, TrialRecord
from tokconv.sweep.record.log import Record, read_events
from tokconv.sweep.trials.listener import Listener

VALUES = {"model.compressor.output_grid_size": 6}


class Desk:
    """A listener on a real record; the test plays Tune's part."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "events.jsonl"
        self.record = Record(self.path)
        self.finished: list[tuple[str, dict[str, float], str]] = []
        self.broken: dict[str, Exception] = {}
        self.seen: list[int] = []
        self.before_finish: Callable[[], None] = lambda: None
        self.listener = Listener(
            self.record,
            token_grid=24,
            base_grid=4,
            judged_by=("val/fvu", "compression_ratio"),
            finish=self.finish,
            on_event=lambda: self.seen.append(len(self.events())),
        )

    def finish(self, trial: TrialRecord) -> Path:
        self.before_finish()
        self.finished.append((trial.uid, trial.figures, threading.current_thread().name))
        if trial.uid in self.broken:
            raise self.broken[trial.uid]
        return Path("artifacts") / trial.uid

    def events(self, kind: str = "") -> list[Event]:
        return [event for event, _ in read_events(self.path) if event["event"].startswith(kind)]

    def start(self, uid: str = "00000") -> Any:
        windows = {"metric_n_steps": {"val/fvu": {}}, "metric_analysis": {"val/fvu": {}}}
        trial = SimpleNamespace(config={"uid": uid, "values": VALUES}, last_result={}, error_file=None, **windows)
        self.listener.on_trial_start(0, [], trial)
        return trial

    def report(self, trial: Any, epoch: int, **others: Any) -> None:
        figures = {"val/fvu": 1 / max(epoch, 0.5), "compression_ratio": 16.0, **others}
        trial.last_result = {"epoch": epoch, "epochs": 3, "trial_id": "x", "time_total_s": 1.0, **figures}
        self.listener.on_trial_result(0, [], trial, trial.last_result)

    def fail(self, trial: Any, error: str) -> None:
        """End a trial with an error, which Tune writes to a file of the driver."""
        trial.error_file = self.path.with_name("error.txt")
        with trial.error_file.open("a") as file:
            file.write(f"Failure # 1 (occurred at 2026-01-01)\n{error}\n")

    def run(self, uid: str, epochs: int = 3) -> Any:
        trial = self.start(uid)
        for epoch in range(1, epochs + 1):
            self.report(trial, epoch)
        self.listener.on_trial_complete(0, [], trial)
        return trial

"""Where a sweep keeps its files. Every run of a spec has its own directory; only `--resume` enters an old one.

Below the spec's `storage`, here ROOT:

    ROOT/sweeps/NAME-001/
        spec.yaml  events.jsonl  study.journal       the spec, the record, the Optuna study
        trials/UID/                                  checkpoints
        artifacts/UID/                               exported compressor and picture of a finished trial
        champions/grid-06/fidelity/                  the exported winner of each grid and purpose
        report/                                      results.csv, champions.json, plots
        answers/                                     what `tokconv answers` measured of its champions
        mlflow.cursor  .lock  driver.json            how far MLflow is; the driver
    ROOT/mlflow.db  ROOT/mlartifacts/                MLflow's default tracking

A path in the record is relative to the sweep's directory, so that the sweep can go on elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokconv.errors import SweepError
from tokconv.exports.champions import grid_folder
from tokconv.sweep.record.driver import registered
from tokconv.system.files import local_path
from tokconv.system.storage import Remote, is_url

DEFAULT_STORAGE = "runs"
"""A spec's `storage` if it names none."""
IN_SWEEP = re.compile(r".*/sweeps/[^/]+/(?=(?:trials|artifacts|champions|report)(?:/|$))", re.DOTALL)
"""The directory of a sweep at the start of a place in it."""


@dataclass(frozen=True)
class SweepDirectory:
    """The directory of one run of a spec."""

    path: Path
    remote: Remote | None = None
    """Its mirror if `storage` is a URL (`tokconv.sweep.record.remote`); the trials put their checkpoints there."""

    @property
    def name(self) -> str:
        """Unique below a root: `demo-002`."""
        return self.path.name

    @property
    def spec(self) -> Path:
        return self.path / "spec.yaml"

    @property
    def events(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def journal(self) -> Path:
        return self.path / "study.journal"

    @property
    def cursor(self) -> Path:
        return self.path / "mlflow.cursor"

    @property
    def trials(self) -> str:
        """The path or URL where the trials keep their checkpoints."""
        return str(self.path / "trials") if self.remote is None else f"{self.remote}/trials"

    def place(self, recorded: str) -> str:
        """Return the path or URL of a checkpoint that the record names."""
        if self.remote is None or is_url(recorded):
            return recorded if is_url(recorded) else str(self.path / recorded)
        return f"{self.remote}/{recorded}"

    @property
    def report(self) -> Path:
        return self.path / "report"

    @property
    def page(self) -> Path:
        """The report as one HTML file."""
        return self.report / "report.html"

    def artifacts(self, uid: str) -> Path:
        """Return the directory of a trial's exported compressor and picture."""
        return self.path / "artifacts" / uid

    @property
    def champions(self) -> Path:
        return self.path / "champions"

    @property
    def answers(self) -> Path:
        """What a vision-language model answered with the champions (`tokconv answers`)."""
        return self.path / "answers"

    def champion(self, grid: int, purpose: str) -> Path:
        """Return the directory of the exported winner of a grid and purpose."""
        return self.champions / grid_folder(grid) / purpose

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the directory's lock while a driver works here. Raises SweepError if another one does."""
        from filelock import FileLock, Timeout

        try:
            with FileLock(self.path / ".lock", timeout=0), registered(self.path):
                yield
        except Timeout as error:
            raise SweepError(f"{self.path}: another process is running this sweep; wait for it or end it") from error


def stores_place(storage: str | None) -> str:
    """Return the directory or URL below a sweep's `storage` that holds its stores, unless `data.store` names one."""
    storage = storage or DEFAULT_STORAGE
    return f"{storage.rstrip('/')}/stores" if is_url(storage) else str(local_path(storage) / "stores")


def relative_place(place: str) -> str:
    """Return a path or URL in a sweep's directory relative to it; any other place unchanged.

    Older records hold whole paths. The sweep may since have been moved, or copied: then what is there is another's.
    """
    return IN_SWEEP.sub("", place, count=1)

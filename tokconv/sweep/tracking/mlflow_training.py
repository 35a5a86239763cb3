"""Writes a run of `tokconv train` to MLflow, from its directory, when its training has ended or was stopped.

Not while it trains: the import of MLflow takes as long as many a first epoch, and a server may be away. What is still
missing there is known from `mlflow.json` in the run's directory, so that a resumed training continues the same run.

    place    the database or server; "" for the default database
    run      its id there
    epoch    the last one that was written
    state    finished, interrupted or failed; "" until all of it was written
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from shutil import copy2
from typing import Any

from tokconv import __version__
from tokconv.config.keys import flatten
from tokconv.errors import printable
from tokconv.evaluation.curve import CSV, PNG
from tokconv.evaluation.protocol import protocol_of
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.sweep.tracking.mlflow_refusals import told_apart
from tokconv.sweep.tracking.mlflow_runs import NOTE, MlflowRuns
from tokconv.system.files import write_json
from tokconv.system.uris import without_credentials

FILE = "mlflow.json"
EXPERIMENT = "train"
ARTEFACTS = (CSV, PNG, "config.json")


@dataclass(frozen=True)
class TrainedRun:
    """What a training left.

    Args:
        directory: with config.json and the curve.
        state: of its newest checkpoint: config, history, baselines, store_fingerprint, protocol.
        ended: finished, interrupted or failed.
        times: epoch -> when it was reported, in milliseconds since 1970; what is missing happened earlier.
        summary: the description of the run.
    """

    directory: Path
    state: Mapping[str, Any]
    ended: str
    times: Mapping[int, int]
    summary: str = ""

    @property
    def last(self) -> int:
        """The last epoch."""
        return int(self.state["history"][-1]["epoch"])


def is_written(run: TrainedRun, uri: str, root: Path) -> bool:
    """Return whether MLflow holds everything of a run; asks nothing but its directory."""
    known = _known(run.directory, _place(uri, root))
    return known.get("epoch") == run.last and known.get("state") == run.ended


def write_training(run: TrainedRun, uri: str, root: Path) -> str:
    """Write what MLflow lacks of a run, and return where it is. Raises RefusedError, and what MLflow raises.

    Args:
        uri: the tracking server or database.
        root: the artifacts of a local database go to `mlartifacts` below it.
    """
    with told_apart(uri, EXPERIMENT):
        runs, place = MlflowRuns(uri, EXPERIMENT, root, print), _place(uri, root)
        known, now = _known(run.directory, place), int(time.time() * 1000)
        start = min(run.times.values(), default=now)
        run_id = _find(runs, known.get("run")) or _create(runs, run, start)
        first = known["epoch"] + 1 if known.get("run") == run_id else 0
        rows = [(row, int(row["epoch"])) for row in run.state["history"] if row["epoch"] >= first]
        runs.log_metrics(run_id, ((_figures(row), run.times.get(epoch, start), epoch) for row, epoch in rows))
        known = {"place": place, "run": run_id, "epoch": run.last, "state": ""}
        write_json(run.directory / FILE, known)
        with tempfile.TemporaryDirectory() as folder:
            for path in filter(Path.is_file, (run.directory / name for name in ARTEFACTS)):
                copy2(path, folder)
            runs.upload(run_id, Path(folder))
        runs.set_state(run_id, run.ended, "", {NOTE: run.summary or None}, now)
        write_json(run.directory / FILE, {**known, "state": run.ended})
    return f"run {run.directory.name} of the experiment {EXPERIMENT!r} at {without_credentials(uri)}"


def _create(runs: MlflowRuns, run: TrainedRun, start: int) -> str:
    tags = {
        "tokconv.kind": "train",
        "tokconv.version": __version__,
        "tokconv.protocol": str(protocol_of(run.state)),
        "tokconv.store_fingerprint": str(run.state["store_fingerprint"]),
        "tokconv.directory": printable(run.directory.resolve()),
    }
    created = runs.client.create_run(runs.experiment_id, start, tags, printable(run.directory.name))
    run_id = str(created.info.run_id)
    runs.log_params(run_id, flatten(run.state["config"]))
    return run_id


def _find(runs: MlflowRuns, run_id: str | None) -> str | None:
    """Return the id of a run that MLflow still has."""
    wanted = f"attributes.run_id = '{run_id}'"
    found = runs.client.search_runs([runs.experiment_id], wanted, max_results=1) if run_id else []
    return str(found[0].info.run_id) if found else None


def _place(uri: str, root: Path) -> str:
    """Return how mlflow.json names a place: a project that is moved takes its own database along."""
    return "" if uri == local_uri(root) else without_credentials(uri)


def _known(directory: Path, place: str) -> dict[str, Any]:
    """Return what mlflow.json says of this place; {} if it says nothing."""
    try:
        known = json.loads((directory / FILE).read_text(encoding="utf-8"))
        return dict(known) if known["place"] == place and int(known["epoch"]) >= 0 else {}
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def _figures(row: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in row.items() if name != "epoch" and abs(value) < float("inf")}

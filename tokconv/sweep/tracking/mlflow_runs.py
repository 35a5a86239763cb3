"""An experiment of MLflow and its runs: found or created, and written such that writing again adds nothing."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.errors import printable
from tokconv.sweep.tracking.mlflow_connection import ARTIFACTS, connect, create_database, database_lock, is_local
from tokconv.sweep.tracking.mlflow_moved import repair_places
from tokconv.sweep.tracking.mlflow_refusals import check_database, deleted_experiment
from tokconv.sweep.tracking.mlflow_view import KIND, description, rounded, shown, slug
from tokconv.system.uris import file_uri, path_of

if TYPE_CHECKING:
    from mlflow.entities import Run

BATCH_METRICS, BATCH_PARAMS = 1000, 100
"""The most that MLflow takes in one call."""
STATUS = {"complete": "FINISHED", "finished": "FINISHED", "pruned": "FINISHED", "interrupted": "KILLED"}
"""State of a trial or a sweep -> status of its run, if that is another word. MLflow marks a killed run like a failed
one, in red; a trial that was stopped early has done what was asked of it, and its tag says that it was stopped."""
NOTE, PARENT = "mlflow.note.content", "mlflow.parentRunId"
MISSING = "tokconv.missing"
"""Tag of a run: the path of what should have been uploaded but is gone."""
Row = tuple[Mapping[str, float], int, int]
"""Figures, their time in milliseconds since 1970, and their step."""


class MlflowRuns:
    """The runs of one experiment.

    Args:
        uri: the tracking server or database.
        experiment: the experiment's name; it is created if it is missing.
        artifact_root: the artifacts of a local database go to `mlartifacts` below it; a server has its own storage.
        on_message: told that the places of a moved database were repaired.

    Raises:
        RefusedError: the experiment was deleted. Else what MLflow raises, which `told_apart` tells apart.
    """

    def __init__(self, uri: str, experiment: str, artifact_root: Path, on_message: Callable[[str], None]) -> None:
        self._uri, self._experiment, self._artifact_root = uri, experiment, artifact_root
        with database_lock(uri):
            if is_local(uri) and (repaired := repair_places(path_of(uri), artifact_root)):
                on_message(repaired)
            if is_local(uri) and not path_of(uri).exists() and os.access(path_of(uri).parent, os.W_OK):
                create_database(path_of(uri))
            check_database(uri)
            self.client = connect(uri)
            self.experiment_id = self._find_experiment()

    def find(self, identity: Mapping[str, str], name: str, start: int, tags: Mapping[str, str]) -> Run:
        """Return the run whose tags are this identity, found or created with more tags."""
        wanted = " and ".join(f"tags.`{key}` = '{value}'" for key, value in identity.items())
        found = self.client.search_runs([self.experiment_id], wanted, max_results=1)
        return found[0] if found else self.client.create_run(self.experiment_id, start, {**identity, **tags}, name)

    def log_metrics(self, run_id: str, rows: Iterable[Row]) -> None:
        """Write the figures of epochs."""
        from mlflow.entities import Metric

        metrics = [
            Metric(name, rounded(value), at, step) for figures, at, step in rows for name, value in figures.items()
        ]
        for start in range(0, len(metrics), BATCH_METRICS):
            self.client.log_batch(run_id, metrics=metrics[start : start + BATCH_METRICS])

    def log_params(self, run_id: str, params: Mapping[str, Any]) -> None:
        """Write params, which a run keeps for ever: other values of the same names are refused."""
        from mlflow.entities import Param

        every = [Param(name, shown(value)) for name, value in params.items()]
        for start in range(0, len(every), BATCH_PARAMS):
            self.client.log_batch(run_id, params=every[start : start + BATCH_PARAMS])

    def set_state(
        self, run_id: str, state: str, reason: str, tags: Mapping[str, Any] | None = None, end_time: int | None = None
    ) -> None:
        """Write the state of a run as a tag and as its status, and tags that are not None."""
        from mlflow.entities import RunTag

        every = {"tokconv.state": state, "tokconv.reason": printable(reason)[:500], **(tags or {})}
        self.client.log_batch(run_id, tags=[RunTag(k, str(v)) for k, v in every.items() if v is not None])
        status = STATUS.get(state, state.upper())
        if end_time is None:
            self.client.update_run(run_id, status=status)
        else:
            self.client.set_terminated(run_id, status, end_time)

    def upload(self, run_id: str, directory: Path, artifact_path: str | None = None) -> None:
        """Upload a directory; a tag names it if it is gone."""
        if directory.is_dir():
            self.client.log_artifacts(run_id, str(directory), artifact_path)
        else:
            # Somebody removed it before MLflow could be reached; later events must not wait for it.
            self.client.set_tag(run_id, MISSING, printable(directory))

    def _find_experiment(self) -> str:
        found = self.client.get_experiment_by_name(self._experiment)
        if found is not None and found.lifecycle_stage == "deleted":
            raise deleted_experiment(self._experiment, str(found.experiment_id), self._uri)
        if found is not None:
            return str(found.experiment_id)
        folder = self._artifact_root / ARTIFACTS / slug(self._experiment)
        location = file_uri(folder) if is_local(self._uri) else None
        return self.client.create_experiment(self._experiment, location, tags={NOTE: description(), **KIND})

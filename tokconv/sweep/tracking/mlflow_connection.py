"""Where a sweep is tracked: MLflow's address, the command that opens its UI, and a client that prints nothing."""

from __future__ import annotations

import logging
import os
import shlex
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from filelock import FileLock

from tokconv.errors import SweepError, import_extra
from tokconv.sweep.tracking.follower import without_credentials
from tokconv.system.files import local_path
from tokconv.system.uris import file_uri, path_of, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE, ARTIFACTS = "mlflow.db", "mlartifacts"
HOME = "sqlite:///~/"
LOCAL_UI = "http://127.0.0.1:5000"
ENVIRONMENT = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # Otherwise it prints two lines, with emoji, for every run that ends on a server.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    # The follower tries again by itself; MLflow would for four minutes.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    # Seconds; they also cover an upload that the server forwards to its own storage.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "60",
}


def tracking_uri(named: str | None, root: Path) -> str:
    """Return where a sweep is tracked: what its spec names, else MLFLOW_TRACKING_URI, else a SQLite file in `root`.

    Raises:
        ConfigError: no URI can hold the name of `root`.
    """
    uri = named or os.environ.get("MLFLOW_TRACKING_URI") or local_uri(root)
    if uri.startswith(HOME):
        return sqlite_uri(local_path(uri.removeprefix(HOME[:-2])))
    # In our own form, MLflow finds the file and leaves no empty folder beside it (`sqlite_uri`).
    return sqlite_uri(path_of(uri)) if is_local(uri) and "%" in uri and "?" not in uri else uri


def local_uri(root: Path) -> str:
    """Return the URI of the SQLite file in `root`."""
    return sqlite_uri(local_path(root) / DATABASE)


def ui_command(uri: str, root: Path) -> str:
    """Return the shell command that opens MLflow's UI, on this machine only; for a server, its address."""
    if not is_local(uri):
        return without_credentials(uri)
    artifacts = file_uri(local_path(root) / ARTIFACTS)
    # Without job execution the server starts in a third of the time and takes a quarter of the memory.
    return (
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false MLFLOW_DISABLE_TELEMETRY=true "
        f"{shlex.quote(sys.executable)} -m mlflow server --host 127.0.0.1 --port 5000 --workers 1 "
        f"--backend-store-uri {shlex.quote(uri)} --artifacts-destination {shlex.quote(artifacts)}"
    )


def check_tracking(root: Path) -> str:
    """Write a figure to a new database in `root` and read it back, for `tokconv doctor`. Raises what MLflow raises."""
    client = connect(local_uri(root))
    run_id = client.create_run(client.create_experiment("doctor", file_uri(root))).info.run_id
    client.log_metric(run_id, "val/fvu", 0.25)
    found = client.get_run(run_id).data.metrics
    if found != {"val/fvu": 0.25}:
        raise SweepError(f"MLflow was given val/fvu = 0.25 and returns {found}")
    return f"MLflow {version('mlflow')}: a figure was written to a new SQLite database and read back"


def connect(uri: str) -> MlflowClient:
    """Return a client that prints nothing on the terminal. Raises MissingExtraError without MLflow."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # MLflow warns about its own type hints during its import, and about its own use of SQLAlchemy later.
    warnings.filterwarnings("ignore", message=".*Any type hint is inferred as AnyType", category=UserWarning)
    warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"mlflow\b")
    mlflow = import_extra("mlflow", "sweep")
    for logger in ("mlflow", "alembic"):
        logging.getLogger(logger).setLevel(logging.ERROR)
    from mlflow.tracking._tracking_service import utils

    # Where artifacts go is remembered for the process and by run alone: of a copied database, that is the original's.
    getattr(utils, "_artifact_repos_cache", {}).clear()
    client: MlflowClient = mlflow.MlflowClient(uri, registry_uri=uri)
    return client


def database_lock(uri: str) -> AbstractContextManager[object]:
    """Return a lock on a SQLite file: two drivers that create its tables at once make each other fail (MLflow 3.17)."""
    if not is_local(uri):
        return nullcontext()
    file = path_of(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")


def is_local(uri: str) -> bool:
    return uri.startswith(("sqlite:", "sqlite+"))

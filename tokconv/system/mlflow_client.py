"""MLflow's address and a client that prints nothing, for what writes to MLflow and what reads from it."""

from __future__ import annotations

import logging
import os
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from tokconv.errors import import_extra
from tokconv.system.files import local_path
from tokconv.system.uris import path_of, sqlite_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

DATABASE = "mlflow.db"
HOME = "sqlite:///~/"
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


def is_local(uri: str) -> bool:
    return uri.startswith(("sqlite:", "sqlite+"))

"""Where a sweep is tracked: MLflow's address, and the lock of its file."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from tokconv.errors import SweepError
from tokconv.system.files import atomic_path
from tokconv.system.mlflow_client import DATABASE, ENVIRONMENT, connect, is_local, local_uri, tracking_uri
from tokconv.system.uris import file_uri, path_of, sqlite_uri

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "ENVIRONMENT",
    "check_tracking",
    "connect",
    "create_database",
    "database_lock",
    "is_local",
    "local_uri",
    "tracking_uri",
]

ARTIFACTS = "mlartifacts"


def check_tracking(root: Path) -> str:
    """Write a figure to a new database in `root` and read it back, for `tokconv doctor`. Raises what MLflow raises."""
    client = connect(local_uri(root))
    run_id = client.create_run(client.create_experiment("doctor", file_uri(root))).info.run_id
    client.log_metric(run_id, "val/fvu", 0.25)
    found = client.get_run(run_id).data.metrics
    if found != {"val/fvu": 0.25}:
        raise SweepError(f"MLflow was given val/fvu = 0.25 and returns {found}")
    return f"MLflow {version('mlflow')}: a figure was written to a new SQLite database and read back"


def create_database(path: Path) -> None:
    """Create a SQLite file with MLflow's tables, whole or not at all: a process that ends amid it, as after Ctrl-C,
    would leave some of the tables, with which every later use of the file fails."""
    with atomic_path(path) as temporary:
        connect(sqlite_uri(temporary)).search_experiments(max_results=1)


def database_lock(uri: str) -> AbstractContextManager[object]:
    """Return a lock on a SQLite file: two drivers that create its tables at once make each other fail (MLflow 3.17)."""
    if not is_local(uri):
        return nullcontext()
    file = path_of(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")

"""Where a sweep is tracked: MLflow's address, the command that opens its UI, and the lock of its file."""

from __future__ import annotations

import shlex
import sys
from contextlib import AbstractContextManager, nullcontext
from importlib.metadata import version
from pathlib import Path

from filelock import FileLock

from tokconv.errors import SweepError
from tokconv.system.files import local_path
from tokconv.system.mlflow_client import DATABASE, ENVIRONMENT, connect, is_local, local_uri, tracking_uri
from tokconv.system.uris import file_uri, path_of, without_credentials

__all__ = [
    "ARTIFACTS",
    "DATABASE",
    "ENVIRONMENT",
    "LOCAL_UI",
    "check_tracking",
    "connect",
    "database_lock",
    "is_local",
    "local_uri",
    "tracking_uri",
    "ui_command",
]

ARTIFACTS = "mlartifacts"
LOCAL_UI = "http://127.0.0.1:5000"


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


def database_lock(uri: str) -> AbstractContextManager[object]:
    """Return a lock on a SQLite file: two drivers that create its tables at once make each other fail (MLflow 3.17)."""
    if not is_local(uri):
        return nullcontext()
    file = path_of(uri)
    file.parent.mkdir(parents=True, exist_ok=True)
    return FileLock(f"{file}.lock")

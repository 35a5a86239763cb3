"""MLflow's UI of a sweep: a server on a port of this machine, for as long as a command runs, and the prepared views."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

from tokconv.errors import SweepError, printable
from tokconv.sweep.tracking.mlflow_connection import ARTIFACTS, connect, is_local
from tokconv.sweep.tracking.mlflow_view import grids_with_views, view_url
from tokconv.system.files import local_path
from tokconv.system.uris import file_uri, path_of, without_credentials

SETTINGS = {
    # Without job execution the server starts in a third of the time and takes a quarter of the memory.
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "MLFLOW_DISABLE_TELEMETRY": "true",
}
START_SECONDS = 180.0
"""How long the server may take until it answers; 6 to 36 s were seen, more on a busy machine."""
STOP_SECONDS = 10.0
LAST_WORDS = 500
"""Characters of the server's output that a failure quotes."""


def server_command(uri: str, root: Path, port: int) -> list[str]:
    """Return the command of a server that this machine alone can reach, with one worker; it wants `SETTINGS`.

    Args:
        uri: the SQLite database.
        root: the folder of `mlartifacts`.
        port: a free one.
    """
    return [
        *(sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"),
        *("--backend-store-uri", uri),
        *("--artifacts-destination", file_uri(local_path(root) / ARTIFACTS)),
    ]


@contextmanager
def mlflow_server(uri: str, root: Path, port: int) -> Iterator[str]:
    """Run a server until the block ends and yield its address, once it answers; nothing is left of it afterwards.

    Raises:
        SweepError: it has ended, or it does not answer in time.
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            server_command(uri, root, port),
            env={**os.environ, **SETTINGS},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C then reaches this process alone, which ends the server with its workers.
            start_new_session=True,
        )
        try:
            address = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + START_SECONDS
            while not _answers(f"{address}/health"):
                # Asked after the attempt: whoever answers while our process is gone is not ours.
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    words = printable(log.read().decode(errors="replace").strip()[-LAST_WORDS:])
                    ended = "does not answer" if process.returncode is None else f"ended with {process.returncode}"
                    raise SweepError(f"MLflow's server on port {port} {ended}; try another --port. It said: {words}")
                time.sleep(0.2)
            yield address
        finally:
            _end(process)


def views_of(uri: str, experiment: str) -> dict[str, str]:
    """Return the prepared views: a title of each, and the part of its URL behind the server's address.

    The views of single ratios come first, because only runs of one ratio compare.

    Raises:
        SweepError: the database or the server does not have the experiment, or not yet.
    """
    if is_local(uri) and not path_of(uri).is_file():
        raise SweepError(f"{path_of(uri)}: no such database; a sweep writes it when its first trial starts")
    found = connect(uri).get_experiment_by_name(experiment)
    if found is None:
        raise SweepError(f"MLflow at {without_credentials(uri)} has no experiment {experiment!r} yet")
    identity, release, grids = str(found.experiment_id), version("mlflow"), grids_with_views(found.tags)
    views = {f"trials at {grid}x{grid} in MLflow": view_url("", identity, release, grid=grid) for grid in grids}
    return {**views, "all trials in MLflow": view_url("", identity, release)}


def _answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the server and its workers, which are the session that it leads."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            break
        try:
            process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            continue
    process.wait()

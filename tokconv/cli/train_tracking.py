"""MLflow's run of `tokconv train`: nothing without the sweep extra, and never a reason for a training to fail or wait.

It is written after the training, by a thread that is given up when it takes too long.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from tokconv.errors import MissingExtraError, printable
from tokconv.system.mlflow_client import is_local, tracking_uri

LOCAL_SECONDS, SERVER_SECONDS = 120.0, 30.0
"""How long a database on this machine and a server may take. The former takes 3 to 5 s, most of it MLflow's import, and
more beside busy processes."""
KEPT = "the run is complete without it, and tokconv train --resume writes it there"


def track(run_dir: Path, state: Mapping[str, Any], ended: str, times: Mapping[int, int], summary: str = "") -> str:
    """Write a run to MLflow unless it is there; return a sentence about it, "" if there is nothing to say.

    Args:
        run_dir: the run's directory, ROOT/train/NAME; ROOT/mlflow.db is the default as for sweeps.
        state: of its newest checkpoint.
        ended: finished, interrupted or failed.
        times: epoch -> when it was reported, in milliseconds since 1970.
        summary: the description of the run in MLflow.
    """
    if find_spec("mlflow") is None:
        return ""
    try:
        from tokconv.sweep.tracking.follower import RefusedError, one_line
        from tokconv.sweep.tracking.mlflow_training import TrainedRun, is_written, write_training
    except MissingExtraError:
        return ""
    root = run_dir.parents[1]
    uri, run = tracking_uri(None, root), TrainedRun(run_dir, state, ended, times, summary)
    if is_written(run, uri, root):
        return ""
    said: list[str] = []

    def write() -> None:
        try:
            said.append(f"MLflow:     {write_training(run, uri, root)}")
        except RefusedError as error:
            said.append(f"MLflow: takes nothing ({error}); {KEPT} after that")
        except Exception as error:  # A failure of another program must never become one of the training.
            said.append(f"MLflow: cannot be reached ({one_line(error)}); {KEPT}")

    thread = threading.Thread(target=write, name="write to MLflow", daemon=True)
    thread.start()
    seconds = LOCAL_SECONDS if is_local(uri) else SERVER_SECONDS
    thread.join(seconds)
    return printable(said[0] if said else f"MLflow: no answer within {seconds:g} s; {KEPT}")

"""A small sweep on a few digits, for the tests that start Ray."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import psutil
import yaml

import tokconv
from support.networks import PUBLISHED
from tokconv.cli.main import main
from tokconv.encoding.pipeline import encode
from tokconv.store.reader import TokenStore
from tokconv.sweep.record.events import Event
from tokconv.sweep.record.log import read_events
from tokconv.sweep.spec.file import parse_spec
from tokconv.training.baselines import measure_baselines

SHARED_STORES = "TOKCONV_TEST_STORES"
"""Environment variable: the folder of the stores that all tests of a session share (`conftest.py`)."""
DATA = ["data.subset=64", "data.num_workers=0", "model.clip.image_size=48"]
"""Images of half the bundled tower's own size, which have a quarter of the tokens."""
TOKEN_GRID, DIM = 12, 64
BASE = [
    *PUBLISHED,
    *DATA,
    "training.epochs=4",
    "training.batch_size=16",
    "training.learning_rate=1e-3",
    "loss.weights.wgan=0",
    "model.compressor.num_layers=1",
    "model.compressor.hidden_dim=16",
    "model.autoencoder.num_layers=1",
    "model.autoencoder.hidden_dim=16",
    "model.critic.num_layers=1",
    "model.critic.hidden_dim=16",
]
WINS = ["model.compressor.kind=adaptive", "training.learning_rate=3e-4", "training.batch_size=8"]
"""With these, trials on the 64 digits beat every baseline at 6 x 6 and 8 x 8, if by little."""


def faulty_path() -> str:
    """Return a PYTHONPATH that brings faults into the processes of trials (`faults/sitecustomize.py`)."""
    return os.pathsep.join([str(Path(__file__).parent / "faults"), str(Path(tokconv.__file__).parents[1])])


def spec(root: Path, **changes: Any) -> dict[str, Any]:
    """Return the plain spec of a sweep whose files go below `root`.

    Sweeps of the same images share one store per test session, because encoding and the baselines take longer than
    many a test. A spec whose base changes its data has a store of its own, in `root`.
    """
    base = changes.pop("base", [])
    own = any(item.startswith(("data", "model.clip")) for item in base)
    store = root / "store" if own else Path(os.environ[SHARED_STORES]) / "digits"
    return {
        "name": "tiny",
        "base": [*BASE, f"data.store={store}", *base],
        "search": {
            "model.compressor.output_grid_size": {"choice": [4, 8]},
            "loss.weights.wgan": {"choice": [0, 0.01]},
            "training.n_critic": {"int": [1, 2]},
        },
        "early_stopping": "none",
        "confirm": "none",
        "trials": 4,
        "concurrency": 1,
        "resources": {"runner": "inline"},
        "storage": str(root / "runs"),
        **changes,
    }


def shared_store() -> TokenStore:
    """Return the store that all sweeps of this session share, with its baselines at the grids of `spec`."""
    config = parse_spec(spec(Path(os.environ[SHARED_STORES]))).base_config()
    store = encode(config)
    measure_baselines(store, [4, 8], config=config)
    return store


def write_spec(root: Path, **changes: Any) -> Path:
    """Write the same spec to a YAML file."""
    path = root / "spec.yaml"
    path.write_text(yaml.safe_dump(spec(root, **changes)))
    return path


def events(directory: Path) -> list[Event]:
    """Return all events of a sweep's record; none before the sweep has one."""
    record = directory / "events.jsonl"
    return [event for event, _ in read_events(record)] if record.exists() else []


def champions(directory: Path) -> dict[str, Any]:
    """Return the champions of the last `sweep_ended`."""
    found: dict[str, Any] = [e for e in events(directory) if e["event"] == "sweep_ended"][-1]["champions"]
    return json.loads(json.dumps(found))


def works(process: psutil.Process) -> bool:
    """Return whether a process can still change the sweep; Ray's agents only watch, and take a minute to notice."""
    with contextlib.suppress(psutil.Error):
        line = " ".join(process.cmdline())
        return "ImplicitFunc" in line or "RayTrainWorker" in line or process.name() in ("raylet", "gcs_server")
    return False


def wait_for_end(processes: Iterable[psutil.Process], seconds: float) -> None:
    """Wait for the processes of a killed driver, which must end by themselves."""

    def lives(process: psutil.Process) -> bool:
        with contextlib.suppress(psutil.NoSuchProcess):
            return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
        return False

    left, deadline = list(processes), time.monotonic() + seconds
    while left := [process for process in left if lives(process)]:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


class Driver:
    """The driver of a sweep that is killed and resumed.

    Args:
        spec: the YAML file.
        cwd: its working directory.
        options: of the command, such as --allow-unproven.
    """

    def __init__(self, spec: Path, cwd: Path, *options: str) -> None:
        self._arguments, self._cwd = ["sweep", str(spec), *options], cwd
        self._children: list[psutil.Process] = []

    def killed_when(self, reached: Callable[[], bool], **faults: str) -> None:
        """Start the process and kill it with SIGKILL as soon as the condition holds.

        Args:
            faults: environment variables that `support/faults` reads, in the trials of this process.
        """
        command = [sys.executable, "-m", "tokconv.cli.main", *self._arguments]
        environment = {**os.environ, "PYTHONPATH": faulty_path(), **faults}
        driver = subprocess.Popen(command, cwd=self._cwd, env=environment, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 400
        try:
            while not reached():
                assert time.monotonic() < deadline
                assert driver.poll() is None
                time.sleep(0.02)
        finally:
            with contextlib.suppress(psutil.NoSuchProcess):
                self._children = psutil.Process(driver.pid).children(recursive=True)
            driver.send_signal(signal.SIGKILL)
            driver.wait()

    def resume(self) -> None:
        """Run the sweep to its end with --resume, in this process, which saves its imports.

        Ray's processes have noticed by then that their driver is gone.
        """
        wait_for_end(filter(works, self._children), 60)
        with contextlib.chdir(self._cwd):
            assert main([*self._arguments, "--resume"]) == 0

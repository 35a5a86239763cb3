"""A sweep whose processes are killed at random moments: nothing is lost, and nothing is recorded twice.

TOKCONV_KILLS says how often (the figure in docs/faults.md is of 20). Of three kills in turn, one each is of the driver,
of a trial's process and of the Ray node, in an order that TOKCONV_CHAOS_SEED draws. With
TOKCONV_CHAOS_RUNNER=torch_trainer, which takes minutes, training workers are killed instead of the node.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow import MlflowClient
from support.sweeping import events, wait_for_end, works, write_spec

import tokconv
from tokconv.sweep.record.log import read_trials
from tokconv.sweep.search.study import open_study
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.tracking.mlflow_connection import local_uri

KILLS = int(os.environ.get("TOKCONV_KILLS", "3"))
TRIALS, EPOCHS = 4, 28 + 8 * KILLS
RUNNER = os.environ.get("TOKCONV_CHAOS_RUNNER", "inline")
MARKS = {"node": "raylet/raylet", "trial": "ray::ImplicitFunc", "worker": "ray::RayTrainWorker"}
VICTIMS = ("driver", "trial", "node") if RUNNER == "inline" else ("driver", "trial", "worker")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(600 + 90 * KILLS),
    pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


class Sweep:
    """The command, started again until the sweep ends."""

    def __init__(self, root: Path) -> None:
        self.root = root
        base = [f"training.epochs={EPOCHS}"]
        self.spec = write_spec(
            root, name="chaos", trials=TRIALS, concurrency=2, base=base, resources={"runner": RUNNER}
        )
        self.directory = root / "runs" / "sweeps" / "chaos-001"
        self._environment = {**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])}

    def start(self) -> subprocess.Popen[str]:
        resume = ["--resume"] if (self.directory / "events.jsonl").exists() else []
        command = [sys.executable, "-m", "tokconv.cli.main", "sweep", str(self.spec), "--allow-unproven", *resume]
        log = (self.root / "log.txt").open("a")
        return subprocess.Popen(command, cwd=self.root, env=self._environment, stdout=log, stderr=log, text=True)

    def reported(self) -> int:
        return sum(event["event"] == "trial_reported" for event in events(self.directory))


def victim(kind: str, driver: subprocess.Popen[str]) -> psutil.Process | None:
    """Return the process to kill; None if there is none of its kind."""
    if kind == "driver":
        return psutil.Process(driver.pid)
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                line = " ".join(process.cmdline())
                if MARKS[kind] in line:
                    return process
    return None


def test_nothing_is_lost_and_nothing_is_recorded_twice(tmp_path: Path, record_property: Any) -> None:
    seed = int(os.environ.get("TOKCONV_CHAOS_SEED", "0"))
    # Moments have numbers of their own: how many are drawn follows the machine's load, and victims must not.
    order, draw = random.Random(seed), random.Random(seed + 1)
    victims = [kind for _ in range(0, KILLS, len(VICTIMS)) for kind in order.sample(VICTIMS, len(VICTIMS))][:KILLS]
    sweep, killed = Sweep(tmp_path), Counter[str]()
    driver, before = sweep.start(), 0
    left: list[psutil.Process] = []
    deadline = time.monotonic() + 500 + 85 * KILLS
    while driver.poll() is None or driver.returncode != 0:
        assert time.monotonic() < deadline, (tmp_path / "log.txt").read_text()[-4000:]
        if driver.poll() is not None:
            # A torn file of Ray Tune must not matter: none of its files is read.
            for pickled in sweep.directory.glob("*/tuner.pkl"):
                pickled.write_bytes(pickled.read_bytes()[: draw.randrange(64)])
            driver = sweep.start()
        moment, count = time.monotonic() + draw.uniform(0.1, 4), sweep.reported()
        if killed.total() >= KILLS or count == before:
            time.sleep(0.2)
            continue
        before = count
        while time.monotonic() < moment and driver.poll() is None:
            time.sleep(0.05)
        if driver.poll() is not None:
            continue
        children = psutil.Process(driver.pid).children(recursive=True)
        kind = victims[killed.total()]
        found = victim(kind, driver)
        if found is None:
            continue
        found.send_signal(signal.SIGKILL)
        killed[kind] += 1
        if kind == "driver":
            driver.wait()
            left += children
            wait_for_end([process for process in children if works(process)], 60)
    assert killed == Counter(victims)
    if len(VICTIMS) <= KILLS:
        assert killed.keys() == set(VICTIMS)
    _check(sweep, killed)
    wait_for_end(left, 120)
    record_property("killed", dict(killed))
    print(f"\nkilled: {dict(killed)}; trials lost: 0, results lost: 0")


def _check(sweep: Sweep, killed: Counter[str]) -> None:
    trials = read_trials(sweep.directory / "events.jsonl")
    assert sorted(trial.uid for trial in trials) == [f"{number:05d}" for number in range(TRIALS)]
    assert {trial.state for trial in trials} == {"complete"}
    assert all([row["epoch"] for row in trial.history] == list(range(EPOCHS + 1)) for trial in trials)
    # A kill may cost only the epoch that was under way in each running trial.
    said = Counter((e["trial"], e["epoch"]) for e in events(sweep.directory) if e["event"] == "trial_reported")
    assert max(said.values()) <= 1 + killed.total()
    assert sum(said.values()) - len(said) <= 2 * killed.total()
    study = open_study(load_spec(sweep.directory / "spec.yaml"), sweep.directory / "study.journal")
    assert [(trial.number, trial.state.name) for trial in study.trials] == [(n, "COMPLETE") for n in range(TRIALS)]
    client = MlflowClient(local_uri(sweep.root / "runs"))
    experiment = client.get_experiment_by_name("chaos")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`tokconv.kind` = 'trial'")
    assert sorted(run.data.tags["tokconv.trial_uid"] for run in runs) == sorted(f"chaos-001/{t.uid}" for t in trials)
    assert {run.info.status for run in client.search_runs([experiment.experiment_id])} == {"FINISHED"}
    for run in runs:
        points = client.get_metric_history(run.info.run_id, "val/fvu")
        assert sorted({point.step for point in points}) == list(range(EPOCHS + 1))

"""Six hundred short trials in one sweep: what the driver and Ray's head hold must not grow with them."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import psutil
import pytest
import yaml
from conftest import Row

TRIALS, EVERY = 600, 1.0
BASE = ["data.subset=64", "data.num_workers=0", "training.epochs=1", "training.batch_size=64", "loss.weights.wgan=0"]


@pytest.mark.timeout(900)
def test_six_hundred_trials(table: Callable[[Row], None], tmp_path: Path) -> None:
    spec = {
        "name": "soak",
        "base": [*BASE, f"data.store={tmp_path}/store"],
        "search": {"training.learning_rate": {"log": [1e-4, 1e-3]}},
        "trials": TRIALS,
        "concurrency": 2,
        "sampler": {"kind": "random", "seed": 0},
        "early_stopping": "none",
        "confirm": "none",
        "resources": {"runner": "inline"},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "soak.yaml").write_text(yaml.safe_dump(spec))
    command = [str(Path(sys.executable).with_name("tokconv")), "sweep", "soak.yaml", "--allow-unproven"]
    with (tmp_path / "log.txt").open("w") as log:
        sweep = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        samples = list(_watch(sweep, tmp_path))
    assert sweep.returncode == 0, (tmp_path / "log.txt").read_text()[-3000:]
    log_lines = next((tmp_path / "runs").rglob("events.jsonl")).read_text().splitlines()
    states = [event["state"] for event in map(json.loads, log_lines) if event["event"] == "trial_ended"]
    assert states == ["complete"] * TRIALS
    units = {"MB": "MB", "files": "open files"}
    for name, unit in ((f"{who} {what}", units[what]) for who in ("driver", "head") for what in units):
        early, late = _around(samples, TRIALS // 3, name), _around(samples, TRIALS - 20, name)
        table(
            Row(
                f"soak of {TRIALS} trials, {name.split()[0]}: {unit}",
                f"around trial {TRIALS // 3}: {early:.0f}",
                f"around trial {TRIALS - 20}: {late:.0f}",
                f"{late - early:+.0f}",
                "flat",
                late <= early * 1.05 + 2,
            )
        )


def _watch(sweep: subprocess.Popen[bytes], root: Path) -> Any:
    """Every second: trials that have ended, MB and open files of the driver and of Ray's own processes."""
    process = psutil.Process(sweep.pid)
    while sweep.poll() is None:
        record = next((root / "runs").rglob("events.jsonl"), None)
        ended = 0 if record is None else record.read_text().count('"trial_ended"')
        try:
            head = [p for p in process.children(recursive=True) if p.name() in ("raylet", "gcs_server")]
            yield {
                "ended": ended,
                "driver MB": process.memory_full_info().uss / 1e6,
                "driver files": process.num_fds(),
                "head MB": sum(p.memory_full_info().uss for p in head) / 1e6,
                "head files": sum(p.num_fds() for p in head),
            }
        except psutil.Error:
            continue
        time.sleep(EVERY)


def _around(samples: list[dict[str, float]], trial: int, name: str) -> float:
    return median(sample[name] for sample in samples if abs(sample["ended"] - trial) <= 15)

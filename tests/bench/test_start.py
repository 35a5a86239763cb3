"""How long a person waits: for the help, and from `tokconv sweep` to the end of the first trial's first step."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Row, Times, run

TOKCONV = str(Path(sys.executable).with_name("tokconv"))
REPEATS = 2


def test_help(table: Callable[[Row], None], tmp_path: Path) -> None:
    run(TOKCONV, "--help", cwd=tmp_path)
    times = Times([run(TOKCONV, "--help", cwd=tmp_path) for _ in range(7)])
    python = Times([run(sys.executable, "-c", "", cwd=tmp_path) for _ in range(7)])
    table(Row("tokconv --help", f"python -c '': {python}", f"{times}", "", "0.3 s", times.middle < 0.3))


@pytest.mark.timeout(400)
@pytest.mark.parametrize("runner", ["inline", "torch_trainer"])
def test_first_step_of_a_sweep(runner: str, table: Callable[[Row], None], tmp_path: Path) -> None:
    """A trial of one step; the store is there, as in every sweep but the first. What is told is its first report: its
    step, its evaluation and its checkpoint."""
    base = [
        "data.subset=64",
        "data.num_workers=0",
        "training.epochs=1",
        "training.batch_size=64",
        "loss.weights.wgan=0",
    ]
    spec = {
        "name": "start",
        "base": [*base, f"data.store={tmp_path}/store"],
        "search": {"training.learning_rate": {"log": [1e-4, 1e-3]}},
        "trials": 1,
        "confirm": "none",
        "resources": {"runner": runner},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "start.yaml").write_text(yaml.safe_dump(spec))
    times = []
    for _ in range(1 + REPEATS):
        start = time.time()
        run(TOKCONV, "sweep", "start.yaml", "--allow-unproven", cwd=tmp_path)
        newest = max((tmp_path / "runs" / "sweeps").glob("start-*/events.jsonl"))
        events = [json.loads(line) for line in newest.read_text().splitlines()]
        reported = next(event["time"] for event in events if event["event"] == "trial_reported")
        times.append(reported / 1e3 - start)
    first, others = times[0], Times(times[1:])
    what, there = (
        f"tokconv sweep to its first trial's first report, {runner}",
        "the first time, store and baselines made",
    )
    table(Row(what, f"{there}: {first:.1f} s", f"{others}", "", "15 s", others.middle < 15))

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
from support.stores import write_store

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


@pytest.mark.timeout(900)
def test_first_step_on_many_wide_tokens(table: Callable[[Row], None], tmp_path: Path) -> None:
    """1,000 images of 24 x 24 x 384 tokens, k = 6: from the start of the process to the end of its first step."""
    write_store(tmp_path / "store", token_grid=24, dim=384, num_images=1000, num_classes=0)
    code = (
        "import os, sys, tokconv; from pathlib import Path; from tokconv.training.loop import run_trial; "
        "from tokconv.training.runtime import LocalRuntime; "
        "store = tokconv.TokenStore.open(sys.argv[1]); "
        "config = tokconv.compose(['training.epochs=2', 'model.compressor.output_grid_size=6']); "
        "run_trial(config, store, LocalRuntime(Path(sys.argv[2]), on_progress=lambda *_: os._exit(0)))"
    )
    first, again = (
        run(sys.executable, "-c", code, str(tmp_path / "store"), str(tmp_path / name), cwd=tmp_path)
        for name in ("first", "again")
    )
    what = "process to the first step, 1,000 images x 576 x 384"
    table(Row(f"{what}, the first time", "", f"{first:.1f} s", "", "40 s", first < 40))
    table(Row(f"{what}, again", "", f"{again:.1f} s", "", "15 s", again < 15))

"""What a trial costs beside its work: trials of one step in a sweep, against the same function called bare."""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from conftest import Row, Times, measure, run, seconds

from tokconv.config.overrides import compose
from tokconv.encoding.pipeline import encode
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

TOKCONV = str(Path(sys.executable).with_name("tokconv"))
BASE = [
    "recipe=published",
    "data.subset=64",
    "data.num_workers=0",
    "training.epochs=1",
    "training.batch_size=64",
    "loss.weights.wgan=0",
]
TRIALS = {"inline": 20, "torch_trainer": 5}
GOALS = {"inline": 0.1, "torch_trainer": 6.0}


@pytest.mark.timeout(600)
@pytest.mark.parametrize("runner", list(TRIALS))
def test_trials_of_one_step(runner: str, table: Callable[[Row], None], tmp_path: Path) -> None:
    base = [*BASE, f"data.store={tmp_path}/store"]
    config = compose(base)
    store = encode(config)
    places = itertools.count()

    def bare() -> None:
        run_trial(config, store, LocalRuntime(tmp_path / f"bare-{next(places)}", device="cpu"))

    torch.set_num_threads(1)
    reference = measure(bare, 10)
    spec = {
        "name": "overhead",
        "base": base,
        "search": {"training.learning_rate": {"log": [1e-4, 1e-3]}},
        "trials": TRIALS[runner],
        "concurrency": 1,
        "early_stopping": "none",
        "confirm": "none",
        # A thread, as the bare function has.
        "resources": {"runner": runner, "cpus_per_worker": 1},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "overhead.yaml").write_text(yaml.safe_dump(spec))
    run(TOKCONV, "sweep", "overhead.yaml", "--allow-unproven", cwd=tmp_path)
    events = [json.loads(line) for line in next((tmp_path / "runs").rglob("events.jsonl")).read_text().splitlines()]
    started = [event["time"] / 1e3 for event in events if event["event"] == "trial_started"]
    # From the second on: the first one also starts what all of them use.
    times = Times([after - before for before, after in itertools.pairwise(started[1:])])
    overhead = times.middle - reference.middle
    what = f"trial of one step, {runner}, one at a time ({TRIALS[runner]} trials)"
    goal = GOALS[runner]
    result = f"{seconds(max(0.0, overhead))} a trial more"
    table(Row(what, f"bare: {reference}", f"{times}", result, f"{goal:g} s", overhead < goal))

"""What judging costs: evaluation beside training, the controller of a sweep as its study grows, the page of a sweep."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import Row, measure, seconds
from support.records import write_sweep

from tokconv.encoding.pipeline import encode
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.report.page import write_page
from tokconv.sweep.spec.file import load_spec
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

ROOT = Path(__file__).parents[2]
TRIALS, SLOTS = 1000, 16


def test_evaluation_beside_training(table: Callable[[Row], None], tmp_path: Path) -> None:
    """A trial as `make sweep` has them, on one core; the baselines are computed once a store and grid."""
    torch.set_num_threads(1)
    base = load_spec(ROOT / "sweeps" / "demo.yaml").base_config()
    base.data.store = str(tmp_path / "store")
    store = encode(base)
    baselines = measure(lambda: baseline_figures(store, base.model.compressor.output_grid_size), 1, warm_up=0)
    start = time.perf_counter()
    result = run_trial(base, store, LocalRuntime(tmp_path / "run", device="cpu"))
    whole = time.perf_counter() - start
    images = len(store.train_indices) // base.training.batch_size * base.training.batch_size
    training = sum(images / figures["train/images_per_second"] for figures in result.history)
    rest = (whole - training) / whole
    table(
        Row(
            "evaluation and checkpoints of a demo trial",
            f"training steps {training:.1f} s",
            f"{whole - training:.1f} s (baselines, once a grid: {seconds(baselines.middle)})",
            f"{rest:.1%} of the trial",
            "10 %",
            rest < 0.1,
        )
    )


@pytest.mark.timeout(600)
@pytest.mark.filterwarnings("ignore")
def test_a_study_of_a_thousand_trials(table: Callable[[Row], None], tmp_path: Path) -> None:
    """tools/simulate_sweep.py: the product's own search, early stopping, record and display; trials are a formula."""
    sys.path.insert(0, str(ROOT / "tools"))
    tools: Any = importlib.import_module("simulate_sweep")
    overrides = [f"trials={TRIALS}", f"concurrency={SLOTS}"]
    spec = load_spec(ROOT / "sweeps" / "rate_distortion.yaml", overrides)
    simulation = tools.simulate(spec, SweepDirectory(tmp_path), minutes=20, seed=0)
    simulation.record.close()
    noted = {mark.trials: mark.ledger for mark in simulation.marks}
    cost = {}
    for last in (TRIALS // 2, TRIALS):
        spent, count = noted[last].since(noted[last - last // 10]), last // 10
        cost[last] = sum(spent.seconds.values()) / count
    early, late = cost.values()
    table(
        Row(
            f"controller of a sweep, a trial, around trial {TRIALS} ({SLOTS} at a time, simulated)",
            f"around trial {TRIALS // 2}: {seconds(early)}",
            seconds(late),
            f"{late / early:.2f} times",
            "flat",
            late < 1.5 * early,
        )
    )


def test_the_page_of_a_thousand_trials(table: Callable[[Row], None], tmp_path: Path) -> None:
    directory = write_sweep(tmp_path, trials=TRIALS)
    times = measure(lambda: write_page(read_sweep(directory), directory.page), 3)
    size = directory.page.stat().st_size / 1e6
    table(
        Row(f"report of {TRIALS} trials, read and written", "", f"{times}, {size:.1f} MB", "", "5 s", times.middle < 5)
    )

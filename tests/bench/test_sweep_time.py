"""A sweep of eight trials through the token store, against a plain loop that encodes every batch in every trial and
trains networks of the published sizes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from conftest import Row, Times, measure, run_and_read, seconds
from published import Published
from support.plain_loop import plain_step
from support.towers import write_vit_b_16

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.bundled import DigitsSource
from tokconv.encoding.towers.tower import VisionTower

TOKCONV = str(Path(sys.executable).with_name("tokconv"))
TRIALS, EPOCHS, IMAGES, BATCH, GRID, DIM, CELLS = 8, 3, 256, 32, 14, 768, 7
PLAIN_BATCH = 8
"""Images a timed step of the plain loop; every step of it costs the same, so that a few tell the whole."""


@pytest.mark.timeout(900)
def test_eight_trials_against_encoding_again(table: Callable[[Row], None], tmp_path: Path) -> None:
    tower = write_vit_b_16(tmp_path / "b16")
    base = [f"model.clip.model_name={tower}", f"data.subset={IMAGES}", f"training.epochs={EPOCHS}"]
    sizes = [f"model.compressor.output_grid_size={CELLS}", f"training.batch_size={BATCH}"]
    spec = {
        "name": "eight",
        "base": [*base, *sizes, f"data.store={tmp_path}/store"],
        "search": {"training.learning_rate": {"log": [1e-4, 1e-3]}},
        "trials": TRIALS,
        "concurrency": 2,
        "early_stopping": "none",
        "confirm": "none",
        "resources": {"runner": "inline"},
        "storage": str(tmp_path / "runs"),
    }
    (tmp_path / "eight.yaml").write_text(yaml.safe_dump(spec))
    ours, printed = run_and_read(TOKCONV, "sweep", "eight.yaml", "--allow-unproven", cwd=tmp_path)
    minutes, rest = re.search(rf"encoding: {IMAGES}/{IMAGES}, in (?:(\d+) min )?(\d+) s", printed).groups()  # type: ignore[union-attr]
    encoding = 60.0 * int(minutes or 0) + int(rest)
    training, images = _training(tmp_path)
    plain = _plain_image(tower)
    whole = plain.middle * TRIALS * EPOCHS * images
    table(
        Row(
            f"sweep of {TRIALS} trials x {EPOCHS} epochs on {IMAGES} images, ViT-B/16-shaped tower",
            f"plain loop {seconds(whole)} ({seconds(plain.middle)} an image of each epoch, measured on {PLAIN_BATCH})",
            f"{ours:.0f} s, encoding {encoding:.0f} s of it",
            f"**{whole / ours:.0f}x**",
            "20x",
            whole >= 20 * ours,
        )
    )
    # Two trials at a time, each on its own core.
    neither = ours - encoding - training / 2
    table(
        Row(
            "of that, neither encoding nor training steps",
            f"training {training:.0f} s on two cores",
            f"{neither:.0f} s: starts, baselines, evaluation, pictures, MLflow, report",
            f"{neither / ours:.0%} of the wall time",
            "15 %",
            neither < 0.15 * ours,
        )
    )


def _training(root: Path) -> tuple[float, int]:
    """Seconds of the training steps of all trials together, and the images of an epoch."""
    log = next((root / "runs").rglob("events.jsonl")).read_text().splitlines()
    reports = [event for event in map(json.loads, log) if event["event"] == "trial_reported"]
    # The start, epoch 0, trains nothing.
    rates = [event["figures"]["train/images_per_second"] for event in reports if event["epoch"]]
    assert len(rates) == TRIALS * EPOCHS
    index = json.loads((root / "store" / "index.json").read_text())
    images = (index["num_images"] - len(index["val"])) // BATCH * BATCH
    return sum(images / rate for rate in rates), images


def _plain_image(tower: Path) -> Times:
    """Seconds that an image costs the plain loop in each epoch of each trial: its encoding and its part of a step."""
    source, encoder = DigitsSource(), VisionTower(ClipConfig(model_name=str(tower)), "cpu")
    pixels = encoder.preprocess([source.load(index) for index in range(PLAIN_BATCH)])
    published = Published(GRID, DIM, CELLS)

    def step() -> None:
        tokens = encoder.encode(pixels)
        standardised = (tokens - tokens.mean((0, 1))) / tokens.std()
        plain_step(published.networks, standardised, lambda: published.draw(standardised), n_critic=5, lambda_gp=10.0)

    times = measure(step, 3)
    return Times([taken / PLAIN_BATCH for taken in times.all])

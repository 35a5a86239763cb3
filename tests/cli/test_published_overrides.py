"""The override lines of the published documentation still work."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from support.commands import TINY

from tokconv.cli.main import main
from tokconv.config.keys import flatten
from tokconv.config.overrides import compose

PUBLISHED = (
    "model.compressor.output_grid_size=8",
    "data.use_subset=true data.subset_size=1000 training.epochs=5",
    "training.batch_size=16",
    "training.n_critic=10",
    "loss.wgan.lambda_gp=20.0",
    "loss.weights.ae=2.0",
)
"""Override lines of the published documentation, verbatim."""
pytestmark = pytest.mark.usefixtures("empty_directory")


def test_published_overrides_train(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    words = [word for line in PUBLISHED for word in line.split()]
    # A later override wins over an earlier one of the same name, so the subset goes by its published name.
    short = {"training.epochs": "1", "data.subset_size": "48"}
    given = [f"{key}={value}" for key, value in {**short, "data.store": f"'{store}'"}.items()]
    assert main(["train", "--no-mlflow", *TINY, *words, *given]) == 0
    text = capsys.readouterr().out
    assert "48 images" in text
    assert re.search(r"^epoch 1/1 +\d", text, re.MULTILINE)
    saved = flatten(json.loads(Path("runs/train/train-001/config.json").read_text()))
    assert saved["data.subset"] == 48
    for word in words:
        key, value = word.split("=")
        if not key.startswith(("data.use_subset", "data.subset_size")):
            assert saved[key] == float(short.get(key, value)), word
    for line in PUBLISHED:
        compose(line.split())  # alone, as it was published


def test_the_published_subset_has_its_size(capsys: pytest.CaptureFixture[str]) -> None:
    line = PUBLISHED[1].split()
    assert main(["encode", "--plan", *line]) == 0
    assert "1000 images x 576 tokens" in capsys.readouterr().out
    assert not list(Path.cwd().iterdir())
    assert compose(line).training.epochs == 5

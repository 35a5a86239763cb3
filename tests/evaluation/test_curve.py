"""The learning curve: every figure of every epoch comes back, and a plot needs matplotlib only."""

from __future__ import annotations

import csv
import sys
from pathlib import Path

import pytest
from PIL import Image

from tokconv.evaluation.curve import write_curve
from tokconv.evaluation.figures import VLM_KL

HISTORY = [
    {"epoch": 0, "epochs": 2, "val/fvu": 0.3, "val/swd": 0.2, "val/swd_floor": 0.01},
    {"epoch": 1, "epochs": 2, "val/fvu": 0.2, "val/swd": 0.1, "val/swd_floor": 0.01, "train/ae": 0.5},
    {"epoch": 2, "epochs": 2, "val/fvu": 0.1, "val/swd": 0.1, "val/swd_floor": 0.01, "train/ae": 0.4},
]
BASELINES = {"pooling": {"val/fvu": 0.4, "val/swd": 0.3}, "of_another_version": {"val/fvu": 0.5}}


def test_the_table_has_every_figure(tmp_path: Path) -> None:
    assert write_curve(HISTORY, BASELINES, tmp_path) == [tmp_path / "curve.csv", tmp_path / "curve.png"]
    with (tmp_path / "curve.csv").open(encoding="utf-8") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    assert rows == HISTORY
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_there_is_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert write_curve(HISTORY, {}, tmp_path) == [tmp_path / "curve.csv"]
    assert not (tmp_path / "curve.png").exists()


def test_what_a_language_model_taught_is_drawn_if_every_epoch_has_it(tmp_path: Path) -> None:
    def width(history: list[dict[str, float]]) -> int:
        with Image.open(write_curve(history, BASELINES, tmp_path)[1]) as image:
            return image.width

    taught = [{**row, VLM_KL: 0.1 / (1 + row["epoch"])} for row in HISTORY]
    assert width(taught) == pytest.approx(1.5 * width(HISTORY), abs=2)
    assert width([*HISTORY[:2], taught[2]]) == width(HISTORY)

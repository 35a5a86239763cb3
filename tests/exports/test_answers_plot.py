"""The plot of answers: all of it is inside the picture."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.exports.answers.figures import ALL
from tokconv.exports.answers.plot import draw_answers


def test_the_legend_of_many_methods_fits(tmp_path: Path) -> None:
    exported = [f"compressor-of-run-{number:03d} adapted" for number in range(8)]
    rows = [
        {"series": name, "grid": grid, "ratio": 576 / grid**2, "tasks": {"textile": {"kept": 0.9, "kl": 0.1}}}
        for name in (ALL, *BASELINES, *exported)
        for grid in (4, 12)
    ]
    with Image.open(draw_answers(rows, tmp_path / "answers.png")) as picture:
        shown = np.asarray(picture.convert("L"))
    for edge in (shown[:, 0], shown[:, -1], shown[0], shown[-1]):
        assert edge.min() == 255

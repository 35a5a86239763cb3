"""What the token store saves: reading an image's tokens against encoding it again. Prints a ratio, asserts no time."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import torch

from tokconv.config import ClipConfig
from tokconv.encode import encode
from tokconv.encoder import BUNDLED, VisionTower
from tokconv.overrides import compose
from tokconv.sources.bundled import DigitsSource

IMAGES, REPEATS = 32, 7


def test_reading_tokens_against_encoding_them_again(tmp_path: Path) -> None:
    store = encode(compose(["data.subset=256", "data.num_workers=0", f"data.store={tmp_path}/store"]))
    source, tower = DigitsSource(), VisionTower(ClipConfig(model_name=BUNDLED), "cpu")
    pixels = tower.preprocess([source.load(index) for index in range(IMAGES)])
    indices = torch.randperm(store.num_images)[:IMAGES]
    again, read = _seconds(lambda: tower.encode(pixels)), _seconds(lambda: store.tokens(indices))
    print(
        f"\nbatch of {IMAGES} images, {torch.get_num_threads()} threads: encode {again * 1e3:.1f} ms, "
        f"read from the store {read * 1e3:.2f} ms, {again / read:.0f} times less"
    )


def _seconds(work: Callable[[], object]) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return median(times)

"""Encoding a folder of photographs against the bare forward pass of its encoder; memory; decoding by itself."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import Row, measure, seconds
from PIL import Image
from support.towers import write_vit_b_16

from tokconv.config.overrides import compose
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import encode
from tokconv.encoding.shards import ShardEncoder
from tokconv.encoding.towers.tower import VisionTower

IMAGES, BATCH, SIDE = 128, 32, 500
"""An ImageNet photograph is about 500 x 400."""
PEAK = """
import resource, sys
from tokconv.cli.main import main
assert main(["encode", *sys.argv[1:]]) == 0
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_vit_b_16(tmp_path_factory.mktemp("towers") / "b16")


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """JPEG files of structure and noise, as large as photographs of their size."""
    folder, random = tmp_path_factory.mktemp("photographs"), np.random.default_rng(0)
    for number in range(2 * IMAGES):
        coarse = Image.fromarray(random.integers(0, 255, (12, 12, 3), dtype=np.uint8)).resize((SIDE, SIDE))
        noisy = np.asarray(coarse, dtype=np.int16) + random.normal(0, 8, (SIDE, SIDE, 3)).astype(np.int16)
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{number:04d}.jpg", quality=90)
    return folder


def test_against_the_bare_forward_pass(
    tower: Path, photographs: Path, tmp_path: Path, table: Callable[[Row], None]
) -> None:
    fixed = [f"data.root={photographs}", f"model.clip.model_name={tower}", f"data.encode_batch_size={BATCH}"]
    config = compose(["data=folder", *fixed, f"data.subset={IMAGES}", "data.num_workers=2"])
    bare = VisionTower(config.model.clip, "cpu")
    pixels = torch.randn(BATCH, 3, 224, 224)
    reference = measure(lambda: bare.encode(pixels), 4)
    rate = BATCH / reference.middle
    numbers = iter(range(100))
    # The weights are loaded anew each time, as a command does.
    stores = lambda: encode(config, device="cpu", stores=tmp_path / f"{next(numbers)}")  # noqa: E731
    times = measure(stores, 1, warm_up=0)
    share = IMAGES / times.middle / rate
    table(
        Row(
            f"tokconv encode, {IMAGES} JPEG files of {SIDE} x {SIDE}, ViT-B/16, weights loaded",
            f"bare forward pass {rate:.1f} images/s",
            f"{IMAGES / times.middle:.1f} images/s",
            f"{share:.0%} of its throughput",
            "95 %",
            share >= 0.95,
        )
    )


def test_memory_does_not_grow_with_the_images(
    tower: Path, photographs: Path, tmp_path: Path, table: Callable[[Row], None]
) -> None:
    peaks = {}
    for images in (IMAGES // 2, 2 * IMAGES):
        fixed = [f"data.root={photographs}", f"model.clip.model_name={tower}", f"data.subset={images}"]
        command = [sys.executable, "-c", PEAK, "data=folder", *fixed, f"data.store={tmp_path}/{images}"]
        peaks[images] = (
            int(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1]) / 1e3
        )
    few, many = peaks
    table(
        Row(
            f"peak memory of encoding {many} images",
            f"of {few} images: {peaks[few]:.0f} MB",
            f"{peaks[many]:.0f} MB",
            f"{peaks[many] / peaks[few] - 1:+.1%}",
            "flat",
            peaks[many] < 1.05 * peaks[few],
        )
    )


def test_decoding_alone(tower: Path, photographs: Path, table: Callable[[Row], None]) -> None:
    """Reading, decoding and preprocessing, on one core; a fast accelerator needs several of them."""
    config = compose(
        ["data=folder", f"data.root={photographs}", f"model.clip.model_name={tower}", "data.num_workers=0"]
    )
    encoder = ShardEncoder(config, open_job(config), torch.device("cpu"))
    batches = [range(i, i + BATCH) for i in range(0, IMAGES, BATCH)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = measure(lambda: list(encoder.read(batches)), 3)
    torch.set_num_threads(threads)
    rate = IMAGES / times.middle
    what = f"reading, decoding and preprocessing {SIDE} x {SIDE} JPEG files, one worker"
    table(Row(what, "", f"{rate:.0f} images/s, {seconds(1 / rate)} each", ""))

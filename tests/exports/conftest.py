"""What tests of answers share: a small LLaVA, photographs of two classes, a compressor."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.artefacts import write_export
from support.llavas import make_llava, make_processor

from tokconv.exports.artefact import read_config
from tokconv.system.files import write_json


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A LLaVA with the bundled tower and a random language model, as transformers saves it."""
    folder = tmp_path_factory.mktemp("answers") / "llava"
    make_llava(width=32).save_pretrained(folder)
    make_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two classes, each with training and test images."""
    root = tmp_path_factory.mktemp("photos")
    for number in range(12):
        path = root / ("train" if number < 6 else "test") / ("a" if number % 2 else "b") / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        color = (20 * number, 250 - 20 * number, 90)
        Image.effect_noise((40, 30), 80).convert("RGB").point(lambda v: v // 2).save(path)
        Image.blend(Image.open(path), Image.new("RGB", (40, 30), color), 0.6).save(path)
    return root


@pytest.fixture(scope="module")
def compressor(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor of the bundled tower's tokens, with random weights."""
    folder = write_export(tmp_path_factory.mktemp("exports") / "mine", token_grid=24, dim=64, grid=5)
    write_json(folder / "config.json", {**read_config(folder), "encoder": {"name": "tiny", "layer": 3}})
    return folder

"""The shipped sweeps on real towers: a trial of each runs, on a small tower and few images."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from support.llavas import write_bundled_llava
from support.photos import write_photos
from support.towers import write_dino

from tokconv.config.overrides import with_values
from tokconv.config.tree import Config
from tokconv.encoding.pipeline import encode
from tokconv.exports.answers.classes import WORDING
from tokconv.exports.answers.teacher import VlmTeacher
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.spec.schema import Spec
from tokconv.training.api import train

SWEEPS = Path(__file__).parents[2] / "sweeps"
REAL = ("textile", "photographs")
CPU = torch.device("cpu")


def small(spec: Spec, folder: Path) -> Config:
    """Return the base of a spec with 24 images, a DINOv2 tower of 12 x 12 tokens and 32 channels, and one epoch."""
    photos, tower = folder / "photos", folder / "tower"
    if not photos.exists():
        write_photos(photos, 24)
        write_dino(tower, "facebook/dinov2-small")
    values: dict[str, Any] = {
        "data.root": str(photos),
        "data.subset": None,
        "data.num_workers": 0,
        "model.clip.model_name": str(tower),
        "model.clip.image_size": 168,
        "training.epochs": 1,
        "training.batch_size": 8,
    }
    return with_values(spec.base_config(), values)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shipped")


@pytest.mark.parametrize("name", REAL)
def test_a_trial_at_the_far_ends_of_the_search_space_runs(name: str, folder: Path, tmp_path: Path) -> None:
    spec = load_spec(SWEEPS / f"{name}.yaml")
    config = small(spec, folder)
    store = encode(config, device="cpu", stores=folder / "stores")
    point = {key: found.members()[-1] for key, found in spec.search.items()}
    assert math.isfinite(train(with_values(config, point), store, tmp_path / "run", device="cpu").figures["val/fvu"])


def test_a_trial_of_the_taught_sweep_runs_with_the_bundled_tower(tmp_path: Path) -> None:
    spec, model = load_spec(SWEEPS / "taught.yaml"), write_bundled_llava(tmp_path / "llava")
    # The question of the judge is the teacher's, and the images of the test are not those of training.
    assert spec.vlm is not None
    base = spec.base_config()
    assert (spec.vlm.model, spec.vlm.prompts) == (base.loss.vlm.model, (base.loss.vlm.prompts,))
    assert base.loss.vlm.prompts == WORDING["textile"]
    write_photos(tmp_path / "photos", 24)
    values: dict[str, Any] = {
        "data.root": str(tmp_path / "photos"),
        "data.store": None,
        "data.num_workers": 0,
        "model.clip.model_name": "bundled:digits-tower",
        "model.clip.layer": -2,
        "loss.vlm.model": str(model),
        "training.epochs": 1,
        "model.compressor.output_grid_size": spec.grids()[-1],
    }
    config = with_values(base, values)
    store = encode(config, device="cpu", stores=tmp_path / "stores")
    result = train(config, store, tmp_path / "run", device="cpu", teacher=VlmTeacher(store, config, CPU))
    assert math.isfinite(result.figures["vlm/kl"])


def test_the_folder_of_photographs_is_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PHOTOS", str(tmp_path / "holiday (2019)"))
    assert load_spec(SWEEPS / "photographs.yaml").base_config().data.root == str(tmp_path / "holiday (2019)")
    monkeypatch.delenv("PHOTOS")
    assert load_spec(SWEEPS / "photographs.yaml").base_config().data.root == "photos"

"""The bundled demo tower keeps what its card promises."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from transformers import CLIPVisionModel

pytest.importorskip("sklearn")

from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.bundled import DigitsSource
from tokconv.encoding.towers.hub import ASSETS
from tokconv.encoding.towers.tower import BUNDLED, VisionTower, describe

TOWER = ASSETS / "digits-tower"
FILES = {"config.json", "preprocessor_config.json", "model.safetensors", "head.safetensors", "card.json"}


def test_the_shipped_directory_is_small_and_holds_no_pickle() -> None:
    assert {path.name for path in TOWER.iterdir()} == FILES
    assert sum(path.stat().st_size for path in TOWER.iterdir()) <= 6e6


def test_it_has_as_many_tokens_as_the_published_tower() -> None:
    spec = describe(ClipConfig(model_name=BUNDLED))
    assert (spec.token_grid, spec.dim) == (24, 64)
    # Layer -2 is the output of the second to last layer, as in LLaVA.
    assert (spec.layer, spec.num_layers) == (3, 4)


def test_its_own_head_classifies_the_held_out_digits_as_the_card_states() -> None:
    source, card = DigitsSource(), json.loads((TOWER / "card.json").read_text())
    held_out = [index for index, item in enumerate(source.items) if item.split == "val"]
    assert card["held_out_images"] == len(held_out) == 397
    assert card["train_images"] == len(source.items) - len(held_out) == source.num_train
    full = VisionTower(ClipConfig(model_name=BUNDLED, layer=-1), "cpu")
    # `VisionTower` leaves out the norm before the head.
    whole = CLIPVisionModel.from_pretrained(TOWER, use_safetensors=True).eval()
    head = load_file(TOWER / "head.safetensors")
    labels = torch.tensor([source.items[index].label for index in held_out])
    predicted = []
    with torch.inference_mode():
        for first in range(0, len(held_out), 50):
            pixels = full.preprocess([source.load(index) for index in held_out[first : first + 50]])
            pooled = whole(pixels).pooler_output
            predicted.append((pooled @ head["weight"].T + head["bias"]).argmax(1))
    top1 = float((torch.cat(predicted) == labels).float().mean())
    assert top1 >= 0.95
    assert round(top1, 4) == card["held_out_top1"]

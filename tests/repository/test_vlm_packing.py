"""tools/vlm_packing.py and tools/assemble_vlm.py: a sequence of several questions gives what each gives alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from support.vlm_parts import PATCH, SIDE, write_parts

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.tower import VisionTower
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import make_task

GRID = 24


def test_the_loss_is_that_of_the_model_itself(tools: Any, tmp_path: Path) -> None:
    """One question, several, and only some of the tokens."""
    write_parts(tmp_path)
    assemble, examples, packing = tools("assemble_vlm").assemble, tools("vlm_examples"), tools("vlm_packing")
    folder = assemble(tmp_path / "tower", tmp_path / "language", tmp_path / "model", layer=-2, image_size=SIDE)
    model = AnsweringModel(folder, torch.device("cpu"))
    task = make_task(f"classes:{tmp_path / 'images'}", "train")
    examples.write_images([task], tmp_path / "written")
    at = (tmp_path / "tower", tmp_path / "written", tmp_path / "store", "cpu", -2, SIDE, "float32")
    [example, *_] = examples.make_examples(model, [task], examples.encode_once(*at))
    [(after, answer)] = example.questions
    longer = ([*after, *after], [3, *answer])
    tokens = model.tower_tokens([task.load(0)])

    def whole(after: list[int], answer: list[int]) -> float:
        image = [model.model.config.image_token_id] * (SIDE // PATCH) ** 2
        ids = torch.tensor([[*example.before, *image, *after, *answer]])
        labels = ids.clone()
        labels[:, : -len(answer)] = -100
        pixels = model.processor.image_processor([task.load(0)], return_tensors="pt")["pixel_values"]
        return float(model.model(input_ids=ids, pixel_values=pixels, labels=labels).loss)

    with torch.no_grad():
        wanted = [whole(after, answer), whole(*longer)]
        found = packing.loss_of(model, tokens, [example])
        several = [replace(example, questions=[longer, (after, answer)]), example]
        both = packing.loss_of(model, tokens.expand(2, -1, -1), several)
        places = torch.arange(tokens.shape[1])[None]
        same = packing.loss_of(model, tokens, [example], places)
        some = packing.loss_of(model, tokens[:, [1, 2]], [example], places[:, [1, 2]])
        elsewhere = packing.loss_of(model, tokens[:, [1, 2]], [example], places[:, [5, 9]])
    assert wanted[0] != pytest.approx(wanted[1], rel=0.01)
    assert float(found) == pytest.approx(wanted[0], rel=1e-5)
    assert float(both) == pytest.approx(0.75 * wanted[0] + 0.25 * wanted[1], rel=1e-5)
    assert torch.equal(same, found)
    assert len({float(found), float(some), float(elsewhere)}) == 3


def test_digits_are_read_before_their_neighbours_and_the_rest(tools: Any) -> None:
    example, packing = tools("vlm_examples").Example, tools("vlm_packing")
    values = torch.full((GRID, GRID), -1)
    values[3:5, 7:9] = 6
    shown = set((values.flatten() >= 0).nonzero().flatten().tolist())
    around = {row * GRID + column for row in range(2, 6) for column in range(6, 10)}

    def places(count: int, values: torch.Tensor | None, seed: int = 0) -> list[int]:
        generator = torch.Generator().manual_seed(seed)
        found = packing.some_places(example(0, [], [], values), GRID * GRID, count, generator).tolist()
        assert found == sorted(set(found))
        assert len(found) == count
        return found

    assert set(places(4, values.flatten())) == shown
    assert set(places(16, values.flatten())) == around
    assert around < set(places(40, values.flatten()))
    assert places(40, values.flatten()) == places(40, values.flatten())
    assert places(40, None) != places(40, None, seed=1)


def test_the_tower_computes_what_tokconv_encodes(tools: Any, tmp_path: Path) -> None:
    write_parts(tmp_path)
    assemble = tools("assemble_vlm").assemble
    folder = assemble(tmp_path / "tower", tmp_path / "language", tmp_path / "model", layer=-2, image_size=SIDE)
    model = AnsweringModel(folder, torch.device("cpu"))
    clip = ClipConfig(model_name=str(tmp_path / "tower"), layer=-2, image_size=SIDE)
    tower = VisionTower(clip, "cpu")
    images = [Image.effect_noise((70, 60), 90).convert("RGB") for _ in range(2)]
    wanted = tower.encode(tower.preprocess(images))
    torch.testing.assert_close(model.tower_tokens(images), wanted, atol=1e-5, rtol=1e-5)
    assert model.token_grid == SIDE // PATCH

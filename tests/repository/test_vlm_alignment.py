"""tools/vlm_alignment.py: a projector starts at the words for the digits that tokens show, and for their places."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from support.stores import write_tokens
from support.vlm_parts import PLACES, SIDE, write_language_model, write_tower

from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.reading import COLUMNS, IMAGES, ROWS, Scenes
from tokconv.exports.answers.reading import SIDE as PICTURE
from tokconv.exports.answers.tasks import make_task

GRID, DIM = 24, 16


@pytest.fixture
def model(tools: Any, tmp_path: Path) -> AnsweringModel:
    write_tower(tmp_path / "tower")
    write_language_model(tmp_path / "language", (*"0123456789", *PLACES), width=64)
    assemble = tools("assemble_vlm").assemble
    return AnsweringModel(
        assemble(tmp_path / "tower", tmp_path / "language", tmp_path / "model", layer=-1, image_size=SIDE),
        torch.device("cpu"),
    )


def test_patches_show_the_digits_that_change_their_pixels(tools: Any) -> None:
    scenes, values_of = Scenes(None, "train"), tools("vlm_digits").values_of
    for image in range(8):
        digits = scenes.placed(image)
        values = values_of(digits, GRID).view(GRID, GRID)
        assert set(values.unique().tolist()) == {-1, *(digit.value for digit in digits)}
        patch = PICTURE // GRID
        for row, column in (values >= 0).nonzero().tolist():
            y, x = row * patch + patch // 2, column * patch + patch // 2
            [there] = [d for d in digits if d.left <= x < d.left + d.size and d.top <= y < d.top + d.size]
            assert there.value == values[row, column]


def test_only_a_task_with_digits_has_places(tools: Any, tmp_path: Path) -> None:
    scenes_of = tools("vlm_digits").scenes_of
    scenes = scenes_of(make_task("reading", "train"))
    assert scenes.placed(IMAGES["train"] - 1) == Scenes(None, "train").placed(IMAGES["train"] - 1)
    assert scenes_of(make_task("captions", "train")) is None


def test_projected_tokens_are_like_the_words_for_what_they_show(
    tools: Any, model: AnsweringModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Tokens that hold a code of their digit and of their place; other images than those learned from are tested."""
    alignment, example = tools("vlm_alignment"), tools("vlm_examples").Example
    monkeypatch.setattr(alignment, "EPOCHS", 200)
    scenes, values_of = Scenes(None, "train"), tools("vlm_digits").values_of
    values = torch.stack([values_of(scenes.placed(image), GRID) for image in range(40)])
    generator = torch.Generator().manual_seed(0)
    codes = torch.cat([torch.randn(10, DIM - 2, generator=generator), torch.zeros(1, DIM - 2)])
    places = torch.stack(torch.meshgrid(torch.arange(GRID), torch.arange(GRID), indexing="ij"), -1).view(-1, 2)
    tokens = torch.cat([codes[values], (places / 12.0 - 1).expand(40, -1, -1)], -1)
    store = write_tokens(tmp_path / "store", tokens)
    alignment.align(model, store, [example(image, [], [], values[image]) for image in range(30)], 0)

    embeddings = model.model.get_input_embeddings().weight.detach().float()
    tokenizer = model.processor.tokenizer

    def most_like(visual: torch.Tensor, names: Any) -> torch.Tensor:
        ids = [tokenizer(str(name), add_special_tokens=False)["input_ids"][0] for name in names]
        return (visual @ F.normalize(embeddings[ids] - embeddings.mean(0), dim=1).T).argmax(-1)

    with torch.no_grad():
        visual = model.model.model.multi_modal_projector(tokens[30:])
    shown = values[30:] >= 0
    read = most_like(visual, range(10))[shown]
    assert (read == values[30:][shown]).float().mean() > 0.9
    for axis, names in enumerate((ROWS, COLUMNS)):
        third = (places[:, axis] * 3 // GRID).expand(10, -1)
        assert (most_like(visual, names) == third).float().mean() > 0.9

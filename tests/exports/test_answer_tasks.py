"""Tasks: their questions have exact answers, and their training and test images are apart."""

from __future__ import annotations

import importlib
import itertools
from pathlib import Path

import pytest
from PIL import Image

from tokconv.errors import ConfigError
from tokconv.exports.answers.tasks import make_task


@pytest.mark.parametrize("split", ["train", "test"])
def test_digits_are_what_the_answers_say(split: str) -> None:
    pytest.importorskip("skimage")
    from tokconv.exports.answers.reading import SIDE, Scenes

    scenes, again = (Scenes(None, split) for _ in range(2))  # type: ignore[arg-type]
    for image in range(8):
        placed = scenes.placed(image)
        assert placed == again.placed(image)
        assert scenes.load(image).tobytes() == again.load(image).tobytes()
        assert scenes.load(image).size == (SIDE, SIDE)
        assert len({one.value for one in placed}) == len(placed) == 1 + image % 4
        assert all(a.left + a.size <= b.left for a, b in itertools.pairwise(placed))


def test_train_and_test_share_no_digit_and_no_photograph() -> None:
    pytest.importorskip("skimage")
    from tokconv.exports.answers.reading import Scenes

    train, test = (Scenes(None, split) for split in ("train", "test"))  # type: ignore[arg-type]
    used = [{one.digit for image in range(60) for one in scenes.placed(image)} for scenes in (train, test)]
    assert not used[0] & used[1]
    stems = [
        {scenes.photographs._source.items[number].key.split("/")[0] for number in scenes.photographs._chosen}
        for scenes in (train, test)
    ]
    assert stems[0]
    assert stems[1]
    assert not stems[0] & stems[1]


def test_questions_of_reading_have_exact_answers() -> None:
    pytest.importorskip("skimage")
    task = make_task("reading")
    assert task.has_answers
    assert {question.kind for question in task.questions} == {"which", "where", "how many"}
    assert len({question.image for question in task.questions}) == len(task.questions), "one question per test image"
    assert make_task("reading").questions == task.questions


def test_a_folder_declares_its_split(photos: Path) -> None:
    train, test = (make_task(f"classes:{photos}", split) for split in ("train", "test"))  # type: ignore[arg-type]
    assert len(train.questions) == len(test.questions) == 6
    assert {question.answer for question in test.questions} == {"a", "b"}
    assert "a or b" in test.questions[0].text


@pytest.mark.parametrize("task", ["classes", "captions"])
def test_a_limit_leaves_images_of_all_classes(task: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = importlib.import_module(f"tokconv.exports.answers.{task}")
    monkeypatch.setattr(module, "TEST_QUESTIONS" if task == "classes" else "IMAGES", 20)
    for number in range(120):
        name, color = (("cat", "red"), ("dog", "blue"))[number % 2]
        path = tmp_path / "test" / name / f"{name}.{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), color).save(path)
        (tmp_path / "train" / name).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (2, 2), color).save(tmp_path / "train" / name / "one.png")
    asked = make_task(f"{task}:{tmp_path}")
    assert asked.num_images == 20
    colors = [asked.load(image).getpixel((0, 0)) for image in range(20)]
    assert 5 <= colors.count((255, 0, 0)) <= 15
    assert len(set(colors[:6])) == 2, "also the first few, which --questions takes"
    again = make_task(f"{task}:{tmp_path}")
    assert [again.load(image).getpixel((0, 0)) for image in range(20)] == colors


def test_textiles_have_their_own_classes(photos: Path) -> None:
    with pytest.raises(ConfigError, match="has the classes a, b; write classes:"):
        make_task(f"textile:{photos}")

"""The classes of a folder as a question, with the name of the class as the answer."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from tokconv.encoding.sources.folder import FolderSource
from tokconv.errors import ConfigError
from tokconv.exports.answers.photographs import split_in
from tokconv.exports.answers.tasks import Question, Split, Task, hash_of

TEST_QUESTIONS = 300
"""Test images at most: the 95 % interval of a share is then at most 11 points wide."""
WORDING = {
    "textile": "Is this fabric nominal, or does it have a local or a global defect? Answer nominal, local or global.",
    "classes": "Which of these does the picture show: {names}? Answer with its name alone.",
}


def make_classes(name: str, folder: Path | None, split: Split) -> Task:
    """Return the question of a folder with a subfolder per class.

    Raises:
        DataError: there are no images.
        ConfigError: there are fewer than two classes, or not those of the textiles.
    """
    assert folder is not None
    source = FolderSource(folder)
    names = source.class_names
    if len(names) < 2:
        raise ConfigError(f"--tasks: {name} needs a folder per class in {folder}; found {len(names)} of them")
    if name == "textile" and set(names) != {"nominal", "local", "global"}:
        raise ConfigError(f"--tasks: {folder} has the classes {', '.join(names)}; write classes:{folder}")
    text = WORDING[name].format(names=f"{', '.join(names[:-1])} or {names[-1]}")
    chosen = [number for number, item in enumerate(source.items) if split_in(item) == split]
    # The items are sorted by class, and names of files often begin with it. Of the textiles, whose published figures
    # are of this order, file names alone decide.
    by_name = name == "textile"
    keys = [item.key for item in source.items]
    chosen.sort(key=lambda number: keys[number].rpartition("/")[2] if by_name else hash_of(keys[number]))
    chosen = chosen[: TEST_QUESTIONS if split == "test" else None]
    labels = [source.items[number].label for number in chosen]
    questions = tuple(
        Question(place, text, None if label is None else names[label], name) for place, label in enumerate(labels)
    )

    def load(place: int) -> Image.Image:
        return source.load(chosen[place])

    identity = {"name": name, "split": split, "source": source.identity(), **({} if by_name else {"order": "hash"})}
    return Task(name, questions, len(chosen), load, identity, lambda place: source.content(chosen[place]))

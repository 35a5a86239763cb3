"""Tasks: questions about images, each with an exact answer or with none.

To add a task, write a function that makes one and add its entry to `TASKS`. Train and test questions never share an
image, a photograph or a handwritten digit. Everything is drawn from seeds, so a task is the same on every machine.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from tokconv.errors import ConfigError
from tokconv.system.files import local_path
from tokconv.system.registry import Registry

Split = Literal["train", "test"]
TEST_SHARE = 5
"""Of a folder without splits of its own, one image in this many is a test image; its name decides."""


@dataclass(frozen=True)
class Question:
    """One question about one image."""

    image: int
    """Index of the image in its task."""
    text: str
    answer: str | None
    """The exact answer; None if only the answer from all tokens is a reference."""
    kind: str
    """Which sort of question it is; figures are also given per kind."""


@dataclass(frozen=True)
class Task:
    """Questions about images that `load` opens by their index, 0 to `num_images` - 1."""

    name: str
    questions: tuple[Question, ...]
    num_images: int
    load: Callable[[int], Image.Image]
    identity: Mapping[str, Any]
    """JSON that is equal for two tasks of the same questions and images."""
    content: Callable[[int], bytes] | None = None
    """Index of an image -> digest of its file, as token stores keep it; None for images that are drawn."""

    @property
    def has_answers(self) -> bool:
        """Whether its questions have exact answers."""
        return all(question.answer is not None for question in self.questions)

    def first(self, count: int | None) -> Task:
        """Return the task with its first `count` questions and the images of these."""
        questions = self.questions[:count]
        images = 1 + max(question.image for question in questions)
        identity = {**self.identity, "questions": len(questions)}
        return replace(self, questions=questions, num_images=images, identity=identity)


Make = Callable[[Path | None, Split, Sequence[str]], Task]
"""(folder, split, prompts) -> the task; prompts are only for tasks without answers."""


@dataclass(frozen=True, kw_only=True)
class TaskKind:
    """A task that can be asked for by name.

    Args:
        meaning: what is asked, in one phrase.
        folder: what its folder holds.
        needs_folder: whether it has no images of its own.
        make: makes it.
    """

    meaning: str
    folder: str
    needs_folder: bool
    make: Make = field(repr=False)


def _classes(folder: Path | None, split: Split, prompts: Sequence[str]) -> Task:
    from tokconv.exports.answers.classes import make_classes

    return make_classes("classes", folder, split)


def _textile(folder: Path | None, split: Split, prompts: Sequence[str]) -> Task:
    from tokconv.exports.answers.classes import make_classes

    return make_classes("textile", folder, split)


def _reading(folder: Path | None, split: Split, prompts: Sequence[str]) -> Task:
    from tokconv.exports.answers.reading import make_reading

    return make_reading(folder, split)


def _captions(folder: Path | None, split: Split, prompts: Sequence[str]) -> Task:
    from tokconv.exports.answers.captions import make_captions

    return make_captions(folder, split, prompts)


TASKS = Registry(
    "--tasks",
    {
        "textile": TaskKind(
            meaning="is the fabric flawless, or is a defect local or global?",
            folder="the photographs of textiles that tools/public_weights.py writes",
            needs_folder=True,
            make=_textile,
        ),
        "classes": TaskKind(
            meaning="which class does the image show?", folder="a folder per class", needs_folder=True, make=_classes
        ),
        "reading": TaskKind(
            meaning="handwritten digits on photographs: which, where, how many?",
            folder="photographs to paste the digits on (default: those of scikit-learn and scikit-image)",
            needs_folder=False,
            make=_reading,
        ),
        "captions": TaskKind(
            meaning="photographs and prompts without a right answer",
            folder="any images (default: photographs of scikit-learn and scikit-image)",
            needs_folder=False,
            make=_captions,
        ),
    },
)
"""Every task by name."""


def make_task(text: str, split: Split = "test", prompts: Sequence[str] = ()) -> Task:
    """Return the task that a text names: NAME or NAME:FOLDER.

    Raises:
        ConfigError: there is no such task, it needs a folder, or it has no questions.
        DataError: its images cannot be found.
        MissingExtraError: scikit-learn or scikit-image is not installed and the task needs it.

    Example:
        >>> make_task("reading").questions[0].text                                   # doctest: +SKIP
        'Which digits are in the picture, from left to right?'
    """
    name, separator, folder = text.partition(":")
    kind = TASKS[name]
    if separator and not folder:
        raise ConfigError(f"--tasks: {text!r} names no folder; write {name}:FOLDER, with {kind.folder}")
    if kind.needs_folder and not folder:
        raise ConfigError(f"--tasks: {name} needs a folder; write {name}:FOLDER, with {kind.folder}")
    task = kind.make(local_path(folder) if folder else None, split, prompts)
    if not task.questions:
        raise ConfigError(f"--tasks: {text} has no {split} images; give a folder with more of them")
    return task


def split_of(key: str) -> Split:
    """Return the split of an image by its name alone, so that more images move none to the other side."""
    return "test" if int.from_bytes(hash_of(key)[:4]) % TEST_SHARE == 0 else "train"


def hash_of(key: str) -> bytes:
    """Return a hash of an image's name: sorted by it, the first images are of all classes, whatever they are called."""
    return hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest()

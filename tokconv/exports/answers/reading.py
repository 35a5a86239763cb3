"""Handwritten digits on photographs: which are they, where is one of them, how many are there?

Reviewers ask for these three as reading, grounding and counting. They are what compression loses first: a digit covers
2 to 6 patches of a side, and the rest of the picture does not help to guess it.

The digits are scikit-learn's 1,797 (8 x 8 px; 1,400 for training), the photographs any folder's. One to four digits of
different values stand side by side without overlap in a random square of a photograph, in black or white, whichever
contrasts more. Each number is drawn from the seed, the split and the index of the image.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image

from tokconv.encoding.sources.bundled import DigitsSource
from tokconv.exports.answers.photographs import Photographs, split_in
from tokconv.exports.answers.tasks import Question, Split, Task

VERSION = 1
"""Grows with every change of what is drawn."""
SEED = 19_000_000
IMAGES = {"train": 3000, "test": 300}
SIDE = 336
"""Of an image, in px."""
SIZES = (28, 84)
"""The smallest and largest side of a digit, in px."""
MOST = 4
MARGIN = 10
"""The least distance in px of a digit's centre from the lines between the nine places, so that its place is exact."""
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
WITH_TEXT = ("page", "clock_motion", "coins")
"""Bundled photographs that show letters or digits of their own."""
WHICH = "Which digits are in the picture, from left to right?"
WHERE = "Where in the picture is the {digit}? Answer with top, middle or bottom, and left, center or right."
HOW_MANY = "How many digits are in the picture?"


@dataclass(frozen=True)
class Placed:
    """A digit in an image: its value, its index among scikit-learn's, and its square in px."""

    value: int
    digit: int
    left: int
    top: int
    size: int

    @property
    def place(self) -> str:
        """The ninth of the image that its centre is in, such as "top left"."""
        row, column = ((start + self.size // 2) * 3 // SIDE for start in (self.top, self.left))
        return f"{ROWS[row]} {COLUMNS[column]}"


class Scenes:
    """Images with digits, drawn when asked for."""

    def __init__(self, folder: Path | None, split: Split) -> None:
        self._digits, self._split = DigitsSource(), split
        self.photographs = Photographs(folder, split, without=WITH_TEXT if folder is None else ())
        self._by_value: dict[int, list[int]] = {}
        for number, item in enumerate(self._digits.items):
            if item.label is not None and split_in(item) == split:
                self._by_value.setdefault(item.label, []).append(number)

    def placed(self, image: int) -> tuple[Placed, ...]:
        """Return the digits of an image from left to right."""
        random = self._random(image)
        count = 1 + image % MOST
        while True:
            values = random.choice(10, count, replace=False).tolist()
            sizes = random.integers(SIZES[0], SIZES[1] + 1, count).tolist()
            found = [
                Placed(value, int(random.choice(self._by_value[value])), left, top, size)
                for value, size in zip(values, sizes, strict=True)
                for left, top in random.integers(0, SIDE - size, (1, 2)).tolist()
            ]
            found.sort(key=lambda one: one.left)
            apart = all(a.left + a.size <= b.left for a, b in itertools.pairwise(found))
            if apart and all(_is_clear(start + one.size // 2) for one in found for start in (one.left, one.top)):
                return tuple(found)

    def load(self, image: int) -> Image.Image:
        """Return an image in RGB, SIDE x SIDE px."""
        random = self._random(image, 1)
        pixels = np.asarray(self._backdrop(random), np.float32).copy()
        for one in self.placed(image):
            small = self._digits.load(one.digit).convert("L").resize((one.size, one.size), Image.Resampling.BICUBIC)
            ink = np.asarray(small, np.float32)[..., None] / 255
            square = pixels[one.top : one.top + one.size, one.left : one.left + one.size]
            square[:] = square * (1 - ink) + (255.0 if square.mean() < 128 else 0.0) * ink
        return Image.fromarray(np.rint(pixels).astype(np.uint8))

    def _backdrop(self, random: np.random.Generator) -> Image.Image:
        photograph = self.photographs.load(int(random.integers(len(self.photographs))))
        side = max(1, round(min(photograph.size) * random.uniform(0.5, 1)))
        left, top = (int(random.integers(0, extent - side + 1)) for extent in photograph.size)
        box = (left, top, left + side, top + side)
        return photograph.resize((SIDE, SIDE), Image.Resampling.BICUBIC, box=box)

    def _random(self, image: int, stream: int = 0) -> np.random.Generator:
        return np.random.default_rng([SEED, VERSION, self._split == "test", image, stream])


def make_reading(folder: Path | None, split: Split) -> Task:
    """Return the task: one question per test image, so that they are independent, and all three per training image.

    Raises:
        DataError: the folder holds no photographs of this split.
        MissingExtraError: scikit-learn is not installed; without a folder, or scikit-image is not.
    """
    scenes = Scenes(folder, split)
    questions: list[Question] = []
    for image in range(IMAGES[split]):
        three = _questions(image, scenes.placed(image))
        # image % 4 is the number of digits, so the kind must not follow it.
        questions += three if split == "train" else [three[image // MOST % 3]]
    identity = {"name": "reading", "version": VERSION, "split": split, "photographs": scenes.photographs.identity()}
    return Task("reading", tuple(questions), IMAGES[split], partial(Scenes.load, scenes), identity)


def _questions(image: int, placed: tuple[Placed, ...]) -> list[Question]:
    asked = placed[image // (3 * MOST) % len(placed)]
    return [
        Question(image, WHICH, " ".join(str(one.value) for one in placed), "which"),
        Question(image, WHERE.format(digit=asked.value), asked.place, "where"),
        Question(image, HOW_MANY, str(len(placed)), "how many"),
    ]


def _is_clear(centre: int) -> bool:
    return all(abs(centre - SIDE * third // 3) >= MARGIN for third in (1, 2))

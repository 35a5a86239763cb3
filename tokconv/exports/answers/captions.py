"""Photographs and prompts without a right answer: how far does what the model says move away from all tokens?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tokconv.exports.answers.photographs import Photographs
from tokconv.exports.answers.tasks import Question, Split, Task

IMAGES = 100
"""Images at most."""
PROMPTS = ("Describe the picture in one sentence.",)


def make_captions(folder: Path | None, split: Split, prompts: Sequence[str]) -> Task:
    """Return every prompt about every photograph of a split.

    Args:
        prompts: empty takes `PROMPTS`.

    Raises:
        DataError: the folder holds no images of this split.
        MissingExtraError: without a folder, scikit-learn or scikit-image is not installed.
    """
    mixed = folder is not None  # The bundled ones are fewer than the limit.
    photographs, asked = Photographs(folder, split, mixed=mixed), tuple(prompts) or PROMPTS
    count = min(IMAGES, len(photographs))
    questions = tuple(Question(image, prompt, None, "captions") for image in range(count) for prompt in asked)
    order = {"order": "hash"} if mixed else {}
    identity = {"name": "captions", "split": split, "prompts": list(asked), "source": photographs.identity(), **order}
    return Task("captions", questions, count, photographs.load, identity, photographs.content)

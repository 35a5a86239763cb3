"""What a small LLaVA learns from: images of tasks, their stored tokens, questions as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from vlm_digits import scenes_of, values_of

import tokconv
from tokconv.encoding.console import encode_and_print
from tokconv.errors import ConfigError
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import Task
from tokconv.store.format import digest
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path, read_json_object
from tokconv.system.terminal import progress_line

IMAGES, STORE, OPTIONS = "images", "store", "images.json"
"""The images of a folder's tasks, their tokens, and the options that both depend on."""


@dataclass(frozen=True)
class Example:
    """An image and all questions about it."""

    image: int
    """Its index in the store."""
    before: list[int]
    """The token ids of a prompt before the image, which all questions share."""
    questions: list[tuple[list[int], list[int]]]
    """The token ids after the image, and those of the answer."""
    values: Tensor | None
    """The value of the digit that each token shows, as `vlm_digits.values_of`; None for images of other tasks."""


def options_of(tasks: Sequence[Task], layer: int, image_size: int | None, precision: str) -> dict[str, Any]:
    """Return JSON, by option, of what images and tokens depend on."""
    return {
        "--tasks": {task.name: digest({**task.identity, "questions": None}) for task in tasks},
        "--questions": {task.name: len(task.questions) for task in tasks},
        "--layer": layer,
        "--image-size": image_size,
        "--precision": precision,
    }


def check_options(out: Path, options: dict[str, Any]) -> None:
    """Raise ConfigError if images or tokens are there already that were made with other options."""
    if not (out / IMAGES).exists() and not (out / STORE).exists():
        return
    try:
        found = read_json_object(out / OPTIONS)
    except (OSError, ValueError):
        found = {}
    if different := [name for name, value in options.items() if name not in found or found[name] != value]:
        known = f"{out / OPTIONS} has them" if found else "of an earlier version, which noted none"
        raise ConfigError(
            f"{', '.join(different)}: the images and tokens in {out} were made with other values ({known}); repeat "
            "those, or choose another --out"
        )


def write_images(tasks: Sequence[Task], folder: Path) -> None:
    """Write the images of the tasks as PNG, in a folder per task; those that are there are kept."""
    total, done = sum(task.num_images for task in tasks), 0
    with progress_line("writing images") as line:
        for task in tasks:
            for image in range(task.num_images):
                path = folder / task.name / f"{image:05d}.png"
                if not path.is_file():
                    with atomic_path(path) as temporary:
                        task.load(image).save(temporary, format="PNG")
                done += 1
                line(done, total, task.name)


def encode_once(
    tower: Path, images: Path, store: Path, device: str | None, layer: int, image_size: int | None, precision: str
) -> TokenStore:
    """Return the store of the images' tokens; encodes what is missing, with its progress on the console."""
    size = [] if image_size is None else [f"model.clip.image_size={image_size}"]
    names = [f"model.clip.model_name={tower}", f"model.clip.layer={layer}", f"model.clip.precision={precision}", *size]
    return encode_and_print(
        tokconv.compose(["data=folder", f"data.root={images}", f"data.store={store}", *names]), device=device
    )


def make_examples(model: AnsweringModel, tasks: Sequence[Task], store: TokenStore) -> list[Example]:
    """Return every image of the tasks that has questions, with its index in the store."""
    places = {key: place for place, key in enumerate(store.keys)}
    prompts: dict[str, tuple[list[int], list[int]]] = {}
    examples, end = [], sorted(model.ends)[:1]
    for task in tasks:
        scenes = scenes_of(task)
        questions: dict[int, list[tuple[list[int], list[int]]]] = {}
        for question in task.questions:
            assert question.answer is not None
            if question.text not in prompts:
                prompts[question.text] = around_image(model, question.text)
            before, after = prompts[question.text]
            answer = model.processor.tokenizer(question.answer, add_special_tokens=False)["input_ids"]
            questions.setdefault(question.image, []).append((after, [*answer, *end]))
        for image, own in questions.items():
            place = places[f"{task.name}/{image:05d}.png"]
            values = None if scenes is None else values_of(scenes.placed(image), store.token_grid)
            examples.append(Example(place, before, own, values))
    return examples


def around_image(model: AnsweringModel, question: str) -> tuple[list[int], list[int]]:
    """Return the token ids of a prompt before and after those of the image."""
    ids, image = model.token_ids(model.prompt(question)), model.model.config.image_token_id
    first, count = ids.index(image), ids.count(image)
    return ids[:first], ids[first + count :]

"""Answers of many methods, resumable: every method that is done has its file, and the rest is done by the next run.

OUT/run.json                  model, tasks and sizes; a run with others needs another folder
OUT/tokens/TASK.npy           the tower's tokens of a task's images, [tiles of all images, N, C] float32
OUT/reference/TASK.safetensors  the answers from all tokens, and the hidden states that predicted them
OUT/methods/NAME.json         the answers of one method, and what it costs
OUT/answers.json              the figures of all methods
OUT/answers.png               answers kept, and divergence, against the ratio
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch.nn.utils.rnn import pad_sequence

from tokconv.errors import ConfigError, StoreError
from tokconv.exports.answers.identity import identity_of
from tokconv.exports.answers.measure import Answer, Reference, TaskTokens, answers_from_all, as_json, measure, refer
from tokconv.exports.answers.methods import Method
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import Task
from tokconv.store.format import digest
from tokconv.system.files import atomic_path, read_json_object, write_json

VERSION = 2
"""Grows with every change of what is measured, so that older results are not mixed with newer ones."""
TIMED = 5
"""Prefills that are timed, one image each; their median counts."""
TEXT_TOKENS = 32
"""About how many tokens of text a question has, for the estimate of the remaining time."""
Tell = Callable[[int, int, str], None]
"""Called with work done, all work, and what is being done."""


class AnswersRun:
    """One run in its folder.

    Args:
        folder: the model's directory; `identity_of` tells it from others.
        batch_size: questions per batch.
        limit: tokens of an answer at most.

    Raises:
        ConfigError: the folder `out` holds a run of another model, other tasks or sizes.
    """

    def __init__(
        self, model: AnsweringModel, folder: Path, tasks: Sequence[Task], out: Path, *, batch_size: int, limit: int
    ) -> None:
        self.model, self.tasks, self.out = model, tasks, out
        self._size, self._limit = batch_size, limit
        identity = {
            "version": VERSION,
            "model": identity_of(folder),
            "tasks": {task.name: {"digest": digest(dict(task.identity)), "of": len(task.questions)} for task in tasks},
            "limit": limit,
        }
        path = out / "run.json"
        if path.is_file() and (found := _read(path)) != identity:
            different = sorted(key for key in identity if found.get(key) != identity[key])
            raise ConfigError(
                f"--out: {out} holds answers with another {' and another '.join(different)}; choose another folder"
            )
        if out.exists() and not out.is_dir():
            raise ConfigError(f"--out: {out} is a file; name a folder")
        out.mkdir(parents=True, exist_ok=True)
        write_json(path, identity)

    def run(self, methods: Sequence[Method], tell: Tell, tell_images: Tell) -> list[dict[str, Any]]:
        """Measure what is missing and return the record of every method, in order; the first is all tokens.

        Args:
            tell: hears of the work in tokens that the language model reads.
            tell_images: hears of the images that the tower encodes.

        Raises:
            DataError: an image cannot be read.
            StoreError: a file of an earlier run is damaged.
        """
        tokens = [self._tokens(task, tell_images) for task in self.tasks]
        finished = {method.name: record for method in methods if (record := self._finished(method)) is not None}
        references_missing = [task for task in self.tasks if not self._reference_path(task).is_file()]
        work = Work(tell)
        of_all, *others = methods
        for own in self.tasks:
            work.add(of_all, own, done=own not in references_missing)
        for own, method in [(task, method) for method in others for task in self.tasks]:
            work.add(method, own, done=method.name in finished)
        work.begin()
        references = [self._reference(own, of_all, work.counter(of_all)) for own in tokens]
        for method in methods:
            if method.name not in finished:
                answers = self._known if method is of_all else partial(self._measured, method, work.counter(method))
                record = self._record(method, tokens, references, answers)
                write_json(self._method_path(method), record)
                finished[method.name] = record
        work.end()
        return [finished[method.name] for method in methods]

    def _finished(self, method: Method) -> dict[str, Any] | None:
        path = self._method_path(method)
        record = _read(path) if path.is_file() else {}
        return record if record.get("identity") == method.identity() else None

    def _known(self, tokens: TaskTokens, reference: Reference) -> list[Answer]:
        return answers_from_all(self.model, tokens.task, reference)

    def _measured(
        self, method: Method, tell: Callable[[int], None], tokens: TaskTokens, reference: Reference
    ) -> list[Answer]:
        return measure(self.model, tokens, method, reference, self._size, self._limit, tell)

    def _record(
        self,
        method: Method,
        tokens: Sequence[TaskTokens],
        references: Sequence[Reference],
        answers_to: Callable[[TaskTokens, Reference], list[Answer]],
    ) -> dict[str, Any]:
        method.prepare()
        answers = {own.task.name: answers_to(own, said) for own, said in zip(tokens, references, strict=True)}
        costs = self._costs(method, tokens[0])
        method.release()
        return {
            "identity": method.identity(),
            "series": method.series,
            "title": method.title,
            "grid": method.grid,
            **costs,
            "answers": {name: as_json(found) for name, found in answers.items()},
        }

    def _costs(self, method: Method, tokens: TaskTokens) -> dict[str, float]:
        """Return what the first image and question cost: compressing apart from projecting and reading the prompt."""
        batch, prompt = tokens.batch([0]), tokens.prompt(self.model, 0)
        of_all = self.model.token_ids(prompt).count(self.model.model.config.image_token_id)
        before, after = [], []
        for _ in range(TIMED):
            start = time.perf_counter()
            compressed = method.compress(batch)
            float(compressed.flatten()[0])  # waits for the device
            middle = time.perf_counter()
            prefill = (method.reader or self.model).prefill(compressed, prompt)
            float(prefill.hidden.flatten()[0])
            before.append(middle - start)
            after.append(time.perf_counter() - middle)
        return {
            "tokens": prefill.num_visual,
            "ratio": of_all / prefill.num_visual,
            "compress_s": statistics.median(before),
            "prefill_s": statistics.median(after),
            "cache_bytes": prefill.cache_bytes,
        }

    def _tokens(self, task: Task, tell: Tell) -> TaskTokens:
        path, shape = self.out / "tokens" / f"{task.name}.npy", (self.model.token_grid**2, self.model.dim)
        sizes = self._sizes(task, path.with_suffix(".json"))
        tiles_of = {size: self.model.num_tiles(size) for size in set(sizes)}
        tiles = [tiles_of[size] for size in sizes]
        if not path.is_file():
            with atomic_path(path) as temporary:
                made = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=(sum(tiles), *shape))
                done = 0
                for start in range(0, task.num_images, self._size):
                    some = range(start, min(start + self._size, task.num_images))
                    found = self.model.tower_tokens([task.load(i) for i in some]).cpu().numpy()
                    made[done : done + len(found)] = found
                    done += len(found)
                    tell(some.stop, task.num_images, task.name)
                made.flush()
        tokens: np.ndarray[Any, Any] = np.load(path, mmap_mode="c")
        if tokens.shape != (sum(tiles), *shape):
            raise StoreError(f"{path}: damaged, it holds {tokens.shape}; remove it and it is made again")
        return TaskTokens(task, tokens, sizes, tiles)

    def _sizes(self, task: Task, path: Path) -> list[tuple[int, int]]:
        """Return the size of every image, as far as the model's prompt depends on it; opens each image once."""
        if not self.model.family.tiles:
            return [(self.model.image_size, self.model.image_size)] * task.num_images
        if not path.is_file():
            write_json(path, {"sizes": [task.load(number).size for number in range(task.num_images)]})
        return [(int(width), int(height)) for width, height in _read(path)["sizes"]]

    def _reference(self, tokens: TaskTokens, method: Method, tell: Callable[[int], None]) -> Reference:
        path = self._reference_path(tokens.task)
        if not path.is_file():
            made = refer(self.model, tokens, method, self._size, self._limit, tell)
            ids = [torch.tensor(answer) for answer in made.answers]
            with atomic_path(path) as temporary:
                save_file(
                    {
                        "lengths": torch.tensor([len(answer) for answer in made.answers]),
                        "ids": pad_sequence(ids, batch_first=True),
                        "hidden": torch.cat(made.hidden),
                    },
                    temporary,
                )
        try:
            saved = load_file(path)
        except (OSError, SafetensorError) as error:
            raise StoreError(f"{path}: damaged; remove it and it is made again") from error
        lengths = saved["lengths"].tolist()
        answers = [ids[:length].tolist() for ids, length in zip(saved["ids"], lengths, strict=True)]
        return Reference(answers, list(saved["hidden"].split(lengths)))

    def _reference_path(self, task: Task) -> Path:
        return self.out / "reference" / f"{task.name}.safetensors"

    def _method_path(self, method: Method) -> Path:
        return self.out / "methods" / f"{_file_name(method)}.json"


class Work:
    """How much there is to read, in tokens of the language model, and how much of it is done."""

    def __init__(self, tell: Tell) -> None:
        self._tell, self._done, self._total = tell, 0, 0

    def add(self, method: Method, task: Task, *, done: bool) -> None:
        """Add the questions of a task, read by a method; those of an earlier run are done."""
        tokens = len(task.questions) * _tokens_of(method)
        self._total += tokens
        self._done += tokens if done else 0

    def begin(self) -> None:
        """Tell what is done already: the remaining time is estimated from what follows."""
        if self._done < self._total:
            self._tell(self._done, self._total, "")

    def counter(self, method: Method) -> Callable[[int], None]:
        """Return what counts the questions that a method has read."""

        def count(questions: int) -> None:
            self._done += questions * _tokens_of(method)
            if self._done < self._total:
                self._tell(self._done, self._total, f"{method.title} {method.grid}x{method.grid}")

        return count

    def end(self) -> None:
        """Tell that everything is done."""
        self._tell(self._total, self._total, "")


def _tokens_of(method: Method) -> int:
    return method.grid**2 + TEXT_TOKENS


def _file_name(method: Method) -> str:
    """Return a name that is unique and that every file system takes."""
    plain = "".join(letter if letter.isascii() and letter.isalnum() else "-" for letter in method.series)
    return f"{plain}-{method.grid:02d}-{digest(method.series)[:6]}"


def _read(path: Path) -> dict[str, Any]:
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: damaged; remove it and it is made again") from error

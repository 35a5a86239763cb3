"""The answers of a method to a task, next to the answers from all tokens.

The reference of a question is the greedy answer from all tokens: its token ids, and the hidden states that predicted
them, from which the language model's head gives the same logits again. A method is compared at these positions:

kl           Kullback-Leibler divergence of its next-token distribution from that of all tokens, in nats, averaged over
             the positions of the reference answer, which both have read so far
nll          its negative log-likelihood of the reference answer, per token; exp is the perplexity
agrees       its own greedy answer has the same words
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokconv.exports.answers.methods import Batch, Method
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.prefill import Prefill, Prompt
from tokconv.exports.answers.scoring import is_same
from tokconv.exports.answers.tasks import Task


@dataclass(frozen=True)
class Answer:
    """What a method answered to one question."""

    text: str
    correct: bool | None
    """None without an exact answer."""
    agrees: bool
    kl: float
    nll: float


@dataclass(frozen=True)
class Reference:
    """The answers from all tokens: token ids of each question, and the hidden states that predicted them [T, D]."""

    answers: list[list[int]]
    hidden: list[Tensor]


class TaskTokens:
    """A task with the tower's tokens of its images.

    Args:
        tokens: [tiles of all images, N, C] float32, read from a memory map.
        sizes: of every image, as `AnsweringModel.size_of` gives them.
        tiles: of every image, how many it has.
    """

    def __init__(
        self, task: Task, tokens: np.ndarray[Any, Any], sizes: Sequence[tuple[int, int]], tiles: Sequence[int]
    ) -> None:
        self.task, self._tokens, self.sizes = task, tokens, sizes
        self._first = [0, *itertools.accumulate(tiles)]

    def batch(self, questions: list[int]) -> Batch:
        """Return the images of some questions, by their index."""
        numbers = [self.task.questions[index].image for index in questions]
        rows = [row for number in numbers for row in range(self._first[number], self._first[number + 1])]
        return Batch(torch.tensor(numbers), torch.from_numpy(self._tokens[rows]), self.task.load, torch.tensor(rows))

    def prompt(self, model: AnsweringModel, question: int) -> Prompt:
        """Return a question, by its index, as the prompt of its image."""
        asked = self.task.questions[question]
        return model.prompt(asked.text, self.sizes[asked.image])


@torch.inference_mode()
def refer(
    model: AnsweringModel, tokens: TaskTokens, method: Method, size: int, limit: int, tell: Callable[[int], None]
) -> Reference:
    """Return the answers from all tokens.

    Args:
        method: all tokens.
        size: questions per batch.
        limit: tokens of an answer at most.
        tell: called with the number of questions that were answered.
    """
    count = len(tokens.task.questions)
    answers: list[list[int]] = [[] for _ in range(count)]
    hidden: list[Tensor] = [torch.empty(0)] * count
    for questions, prefill in _read(model, tokens, method, size):
        found = model.answer(prefill, limit)
        # Not the states of the greedy steps: by the same pass as for every method, the divergence of all tokens from
        # themselves is 0.
        states = model.follow(prefill, _padded(found)).float().cpu()
        for place, index in enumerate(questions):
            answers[index], hidden[index] = found[place], states[place, : len(found[place])]
        tell(len(questions))
    return Reference(answers, hidden)


@torch.inference_mode()
def measure(
    model: AnsweringModel,
    tokens: TaskTokens,
    method: Method,
    reference: Reference,
    size: int,
    limit: int,
    tell: Callable[[int], None],
) -> list[Answer]:
    """Return the answers of a method to all questions of a task; arguments as `refer`."""
    answers: dict[int, Answer] = {}
    reader = method.reader or model
    for questions, prefill in _read(reader, tokens, method, size):
        wanted = [reference.answers[index] for index in questions]
        ids = _padded(wanted).to(model.device)
        logits = reader.logits(reader.follow(prefill, ids))
        logs = logits.log_softmax(-1)
        first = logs.argmax(-1)
        same = [first[place, : len(own)].tolist() == own for place, own in enumerate(wanted)]
        # The greedy answer is the reference's if every token of it is the likeliest one.
        own = wanted if all(same) else reader.answer(prefill, limit)
        for place, index in enumerate(questions):
            length = len(wanted[place])
            mine, said = logs[place, :length], ids[place, :length]
            theirs = model.logits(reference.hidden[index])
            text, of_all = model.text(own[place]), model.text(wanted[place])
            answer = tokens.task.questions[index].answer
            answers[index] = Answer(
                text=text,
                correct=None if answer is None else is_same(text, answer),
                agrees=is_same(text, of_all),
                kl=float(divergence(theirs, logits[place, :length])),
                nll=float(-mine.gather(1, said[:, None]).mean()),
            )
        tell(len(questions))
    return [answers[index] for index in range(len(answers))]


@torch.inference_mode()
def answers_from_all(model: AnsweringModel, task: Task, reference: Reference) -> list[Answer]:
    """Return the answers from all tokens to a task, which the reference holds: nothing is read again."""
    answers = []
    for question, own, hidden in zip(task.questions, reference.answers, reference.hidden, strict=True):
        logs, text = model.logits(hidden).log_softmax(-1), model.text(own)
        said = logs.gather(1, torch.tensor(own, device=logs.device)[:, None])
        correct = None if question.answer is None else is_same(text, question.answer)
        answers.append(Answer(text=text, correct=correct, agrees=True, kl=0.0, nll=float(-said.mean())))
    return answers


def divergence(theirs: Tensor, mine: Tensor) -> Tensor:
    """Return the mean Kullback-Leibler divergence of `mine` from `theirs`, two sets of logits [T, vocabulary], a scalar
    in nats; rounding never makes it negative."""
    wanted, found = theirs.log_softmax(-1), mine.log_softmax(-1)
    return (wanted.exp() * (wanted - found)).sum(-1).mean().clamp_min(0)


def as_json(answers: list[Answer]) -> list[dict[str, Any]]:
    """Return answers as JSON."""
    return [asdict(answer) for answer in answers]


def _read(model: AnsweringModel, tokens: TaskTokens, method: Method, size: int) -> Iterator[tuple[list[int], Prefill]]:
    """Yield questions with equal prompts, at most `size` at once, and what the model makes of them."""
    by_prompt: dict[Prompt, list[int]] = defaultdict(list)
    for index in range(len(tokens.task.questions)):
        by_prompt[tokens.prompt(model, index)].append(index)
    for prompt, equal in by_prompt.items():
        for start in range(0, len(equal), size):
            some = equal[start : start + size]
            yield some, model.prefill(method.compress(tokens.batch(some)), prompt)


def _padded(answers: list[list[int]]) -> Tensor:
    """Return answers as [b, T]; what follows the end of one influences nothing before it."""
    return pad_sequence([torch.tensor(answer) for answer in answers], batch_first=True)

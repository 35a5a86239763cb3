"""What a vision-language model says about images of a store from all tokens, and how far it is from that with others.

The model reads the compressed tokens of an image and a prompt. The distance is the Kullback-Leibler divergence of its
next-token distribution from the one that it has with all tokens, in nats: averaged over the first tokens of its own
greedy answer from all tokens. It needs no labels. What all tokens say is computed once beside the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import chain
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokconv.errors import ConfigError
from tokconv.exports.answers.identity import identity_of
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.measure import divergence
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.prefill import Prompt
from tokconv.exports.answers.stores import check_store
from tokconv.store.cache import Tensors, computed_once
from tokconv.store.format import digest
from tokconv.store.reader import TokenStore

VERSION = 2
"""Grows with every change of what is computed."""
BATCH = 8
"""Images that the language model reads at once."""
PART = 32
"""Images in one file of what all tokens say: so many are lost if the process ends."""


def prompts_of(settings: JudgeSettings, model: AnsweringModel) -> list[Prompt]:
    """Return the prompts as the model takes them. Raises ConfigError if it cuts images into tiles."""
    prompts = [model.prompt(text) for text in settings.prompts]
    if (tiles := model.num_tiles(prompts[0].size)) > 1:
        raise ConfigError(
            f"{settings.model}: a {model.family.name} reads {tiles} grids of tokens of an image, and a store holds "
            "one; a judge reads one per image"
        )
    return prompts


def say(
    model: AnsweringModel, tokens_bNC: Tensor, prompts: Sequence[Prompt], limit: int
) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield for each prompt the greedy answers of at most `limit` tokens about b images, each [T] int64 on the CPU, and
    the states that predicted each token, [b, T of the longest, D] float32 on the CPU."""
    for prefill in model.prefill_each(tokens_bNC, prompts):
        own = [torch.tensor(answer) for answer in model.answer(prefill, limit)]
        yield own, model.follow(prefill, pad_sequence(own, batch_first=True)).float().cpu()


Said: TypeAlias = Sequence[tuple[Tensor, Tensor]]
"""What all tokens said about some images: the ids of each answer [T], and the states that predicted them [T, D]."""


def divergence_from(
    model: AnsweringModel, said: Sequence[Said], compressed_bKC: Tensor, prompts: Sequence[Prompt]
) -> Tensor:
    """Return the mean divergence from what all tokens said of b images, a scalar with its gradient.

    Args:
        said: by prompt.
        compressed_bKC: in token units.
    """
    pairs = _logits(model, said, compressed_bKC, prompts)
    return torch.stack([divergence(theirs, mine) for theirs, mine in pairs]).mean()


def _logits(
    model: AnsweringModel, said: Sequence[Said], compressed_bKC: Tensor, prompts: Sequence[Prompt]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits [T, vocabulary] of each prompt's answer about each image, from all tokens and from these."""
    for own, prefill in zip(said, model.prefill_each(compressed_bKC, prompts), strict=True):
        hidden = model.follow(prefill, pad_sequence([answer for answer, _ in own], batch_first=True))
        for (_, theirs), mine in zip(own, hidden, strict=True):
            yield model.logits(theirs), model.logits(mine[: len(theirs)])


class NextTokens:
    """The next-token distributions of one model on images of one store.

    Args:
        store: holds the tokens that the model's projector reads.
        settings: model, prompts, and tokens of an answer.
        model: the model of the settings.
        images: [n] int64, distinct.

    Attributes:
        name: tells apart what is computed from other models, prompts, answers and images.

    Raises:
        ConfigError: the store does not hold the tokens that the model's projector reads.
    """

    def __init__(self, store: TokenStore, settings: JudgeSettings, model: AnsweringModel, images: Tensor) -> None:
        self._store, self._settings, self._model, self.images = store, settings, model, images
        self.prompts = prompts_of(settings, model)
        check_store(store, model)
        self._identity = identity_of(settings.model)
        self.name = self._name(images)
        self._parts: list[Mapping[str, Tensor]] = []

    def prepare(self, tell: Callable[[int, int], None] = lambda done, total: None) -> None:
        """Compute what all tokens say, unless it is known; `tell` is called with how many images are done, and all."""
        parts = self.images.split(PART)
        for number in range(len(self._parts), len(parts)):
            tell(number * PART, len(self.images))
            images = parts[number]
            file = f"vlm-{self._name(images)}.safetensors"
            self._parts.append(computed_once(self._store, file, partial(self._refer, images), Tensors()))
        tell(len(self.images), len(self.images))

    def divergence(self, compressed_bKC: Tensor, places: Tensor, prompts: Sequence[int]) -> Tensor:
        """Return the mean divergence with these tokens, a scalar with their gradient.

        Args:
            compressed_bKC: in token units.
            places: [b], of their images in `images`.
            prompts: the numbers of those that are asked.
        """
        asked = [self.prompts[prompt] for prompt in prompts]
        return divergence_from(self._model, [self._known(places, prompt) for prompt in prompts], compressed_bKC, asked)

    @torch.inference_mode()
    def compare(self, compressed_bKC: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        """Return the divergence for every prompt about every image, [P, b], and whether the model begins its answer
        with the same tokens, [P, b].

        Arguments as `divergence`. With every token of an answer the likeliest one after those before it, the greedy
        answer is the same.
        """
        said = [self._known(places, prompt) for prompt in range(len(self.prompts))]
        # The logits of one image at a time: a vocabulary is wide.
        found = [
            (divergence(theirs, mine), (theirs.argmax(-1) == mine.argmax(-1)).all())
            for theirs, mine in _logits(self._model, said, compressed_bKC, self.prompts)
        ]
        far, same = zip(*found, strict=True)
        shape = (len(self.prompts), len(places))
        return torch.stack(far).unflatten(0, shape), torch.stack(same).unflatten(0, shape)

    def _known(self, places: Tensor, prompt: int) -> Said:
        """Return what all tokens say of some images to one prompt."""
        self.prepare()
        known = [
            {key: values[prompt, place % PART] for key, values in self._parts[place // PART].items()}
            for place in places.tolist()
        ]
        return [(one["ids"][: (length := int(one["lengths"]))], one["hidden"][:length]) for one in known]

    def _name(self, images: Tensor) -> str:
        settings = self._settings
        precision = str(self._model.model.dtype)
        of_model = [VERSION, self._identity, precision, list(settings.prompts), images.tolist(), settings.tokens]
        return digest(of_model)[:12]

    @torch.inference_mode()
    def _refer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the greedy answers from all tokens to P prompts about n images: `ids` [P, n, T] int64, zeros behind
        the end of an answer, `lengths` [P, n], and the states that predicted each token, `hidden` [P, n, T, D]."""
        answers: list[list[Tensor]] = [[] for _ in self.prompts]
        hidden: list[list[Tensor]] = [[] for _ in self.prompts]
        for some in images.split(BATCH):
            said = say(self._model, self._store.tokens(some), self.prompts, self._settings.tokens)
            for prompt, (own, states) in enumerate(said):
                answers[prompt] += own
                hidden[prompt] += states.unbind()
        shape = (len(self.prompts), len(images))
        every = list(chain.from_iterable(answers))
        ids = pad_sequence(every, batch_first=True)
        lengths = torch.tensor([len(answer) for answer in every])
        states = pad_sequence(list(chain.from_iterable(hidden)), batch_first=True)
        return {
            "ids": ids.unflatten(0, shape),
            "lengths": lengths.unflatten(0, shape),
            "hidden": states.unflatten(0, shape),
        }

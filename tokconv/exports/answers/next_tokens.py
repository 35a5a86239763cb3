"""What a vision-language model says about images of a store from all tokens, and how far it is from that with others.

The model reads the compressed tokens of an image and a prompt. The distance is the Kullback-Leibler divergence of its
next-token distribution from the one that it has with all tokens, in nats: averaged over the first tokens of its own
greedy answer from all tokens. It needs no labels. What all tokens say is computed once beside the store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokconv.errors import ConfigError
from tokconv.exports.answers.identity import identity_of
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.measure import divergence
from tokconv.exports.answers.model import AnsweringModel, Prompt
from tokconv.exports.answers.stores import check_store
from tokconv.store.cache import Tensors, computed_once
from tokconv.store.format import digest
from tokconv.store.reader import TokenStore

VERSION = 1
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


def say(model: AnsweringModel, tokens_bNC: Tensor, prompt: Prompt, limit: int) -> tuple[list[Tensor], Tensor]:
    """Return the greedy answers of at most `limit` tokens about b images, each [T] int64 on the CPU, and the states
    that predicted each token, [b, T of the longest, D] float32 on the CPU."""
    prefill = model.prefill(tokens_bNC, prompt)
    own = [torch.tensor(answer) for answer in model.answer(prefill, limit)]
    return own, model.follow(prefill, pad_sequence(own, batch_first=True)).float().cpu()


def divergence_from(
    model: AnsweringModel, said: Sequence[tuple[Tensor, Tensor]], compressed_bKC: Tensor, prompt: Prompt
) -> Tensor:
    """Return the mean divergence from what all tokens said of b images, a scalar with its gradient.

    Args:
        said: of each image, the ids of its answer [T] and the states that predicted them [T, D].
        compressed_bKC: in token units.
    """
    pairs = _logits(model, said, compressed_bKC, prompt)
    return torch.stack([divergence(theirs, mine) for theirs, mine in pairs]).mean()


def _logits(
    model: AnsweringModel, said: Sequence[tuple[Tensor, Tensor]], compressed_bKC: Tensor, prompt: Prompt
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits [T, vocabulary] of each image's answer, from all tokens and from these."""
    ids = pad_sequence([answer for answer, _ in said], batch_first=True)
    hidden = model.finish(model.prefill(compressed_bKC, prompt), ids)
    for (_, theirs), mine in zip(said, hidden, strict=True):
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

    def divergence(self, compressed_bKC: Tensor, places: Tensor, prompt: int) -> Tensor:
        """Return the mean divergence with these tokens, a scalar with their gradient.

        Args:
            compressed_bKC: in token units.
            places: [b], of their images in `images`.
            prompt: the number of the prompt.
        """
        return divergence_from(self._model, self._known(places, prompt), compressed_bKC, self.prompts[prompt])

    @torch.inference_mode()
    def compare(self, compressed_bKC: Tensor, places: Tensor, prompt: int) -> tuple[Tensor, Tensor]:
        """Return the divergence of every image, [b], and whether the model begins its answer with the same tokens, [b].

        Arguments as `divergence`. With every token of an answer the likeliest one after those before it, the greedy
        answer is the same.
        """
        # The logits of one image at a time: a vocabulary is wide.
        found = [
            (divergence(theirs, mine), (theirs.argmax(-1) == mine.argmax(-1)).all())
            for theirs, mine in _logits(self._model, self._known(places, prompt), compressed_bKC, self.prompts[prompt])
        ]
        far, same = zip(*found, strict=True)
        return torch.stack(far), torch.stack(same)

    def _known(self, places: Tensor, prompt: int) -> list[tuple[Tensor, Tensor]]:
        """Return what all tokens say of some images: ids [T] and states [T, D] of each."""
        self.prepare()
        known = [
            {key: values[prompt, place % PART] for key, values in self._parts[place // PART].items()}
            for place in places.tolist()
        ]
        return [(one["ids"][: (length := int(one["lengths"]))], one["hidden"][:length]) for one in known]

    def _name(self, images: Tensor) -> str:
        settings = self._settings
        of_model = [VERSION, self._identity, list(settings.prompts), images.tolist(), settings.tokens]
        return digest(of_model)[:12]

    @torch.inference_mode()
    def _refer(self, images: Tensor) -> Mapping[str, Tensor]:
        """Return the greedy answers from all tokens to P prompts about n images: `ids` [P, n, T] int64, zeros behind
        the end of an answer, `lengths` [P, n], and the states that predicted each token, `hidden` [P, n, T, D]."""
        answers: list[Tensor] = []
        hidden: list[Tensor] = []
        for prompt in self.prompts:
            for some in images.split(BATCH):
                own, states = say(self._model, self._store.tokens(some), prompt, self._settings.tokens)
                hidden += states.unbind()
                answers += own
        shape = (len(self.prompts), len(images))
        ids = pad_sequence(answers, batch_first=True)
        lengths = torch.tensor([len(answer) for answer in answers])
        states = pad_sequence(hidden, batch_first=True)
        return {
            "ids": ids.unflatten(0, shape),
            "lengths": lengths.unflatten(0, shape),
            "hidden": states.unflatten(0, shape),
        }

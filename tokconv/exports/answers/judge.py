"""A frozen vision-language model as a judge of compressors: the figure `vlm/kl`, on held-out images of a token store.

The model reads the compressed tokens of an image and a prompt. The figure is the Kullback-Leibler divergence of its
next-token distribution from the one that it has with all tokens, in nats: averaged over the first tokens of its own
greedy answer from all tokens, over the prompts, and over the images. It needs no labels. What all tokens say, and the
figures of every baseline, are computed once beside the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cached_property

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from tokconv.config.tree import Config
from tokconv.errors import ConfigError
from tokconv.evaluation import protocol
from tokconv.evaluation.baselines.codecs import baseline_codec, fit_version, on_device
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import Codec, ImageCodec, compress_only
from tokconv.evaluation.evaluator import Figures
from tokconv.evaluation.figures import VLM_KL
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.measure import divergence
from tokconv.exports.answers.model import AnsweringModel, identity_of
from tokconv.exports.answers.stores import check_store, check_tower
from tokconv.store.cache import JsonFigures, Tensors, computed_once
from tokconv.store.format import digest
from tokconv.store.reader import TokenStore

VERSION = 1
"""Grows with every change of what is computed."""
BATCH = 8
"""Images that the language model reads at once."""


class VlmJudge:
    """The judge of one store.

    Args:
        store: its held-out images are judged on, `settings.images` of them that a fixed seed chooses.
        device: where the model runs.

    Attributes:
        model: the model.
        images: [n] int64, ascending, the judged images.

    Raises:
        DataError: the directory holds no model that can answer.
        ConfigError: the store does not hold the tokens that its projector reads.

    Example:
        >>> judge = VlmJudge(store, JudgeSettings(Path("llava"), ("What is this?",), 64, 8), device)   # doctest: +SKIP
        >>> judge(codec_of(compressor, decoder))                                                      # doctest: +SKIP
        {'vlm/kl': 0.21}
    """

    def __init__(self, store: TokenStore, settings: JudgeSettings, device: torch.device) -> None:
        self._store, self._settings = store, settings
        self.model = AnsweringModel(settings.model, device)
        self._prompts = [self.model.prompt(text) for text in settings.prompts]
        if (tiles := self.model.num_tiles(self._prompts[0].size)) > 1:
            raise ConfigError(
                f"{settings.model}: a {self.model.family.name} reads {tiles} grids of tokens of an image, and a store "
                "holds one; a judge reads one per image"
            )
        check_store(store, self.model)
        generator = torch.Generator().manual_seed(protocol.SEED)
        order = torch.randperm(len(store.val_indices), generator=generator)[: settings.images]
        self.images = store.val_indices[order].sort().values
        self._name = digest(
            [VERSION, identity_of(settings.model), list(settings.prompts), self.images.tolist(), settings.tokens]
        )[:12]

    def check_tower(self, config: Config | None = None) -> None:
        """Raise ConfigError unless the model's own tower makes the tokens of the store (`stores.check_tower`)."""
        check_tower(self._store, self.model, int(self.images[0]), config)

    def __call__(self, codec: Codec | ImageCodec) -> Figures:
        """Return the figure of a codec by its name."""
        return {VLM_KL: self._divergence(codec)}

    def baseline(self, grid: int, name: str) -> float:
        """Return the figure of a baseline at a grid, computed once per store and judge."""

        def measure() -> dict[str, Figures]:
            codec = on_device(baseline_codec(self._store, grid, name), self.model.device)
            return {name: self(codec)}

        file = f"vlm-{self._name}-{name}-v{fit_version(BASELINES[name])}-grid-{grid:02d}.json"
        return computed_once(self._store, file, measure, JsonFigures("vlm"))[name][VLM_KL]

    def add_to(
        self, baselines: Mapping[int, Mapping[str, Figures]], tell: Callable[[int, int, str], None]
    ) -> dict[int, dict[str, Figures]]:
        """Return the figures of baselines by grid and name, with the judge's.

        Args:
            tell: called with how many are done, how many there are, and the next one.
        """
        found: dict[int, dict[str, Figures]] = {grid: {} for grid in baselines}
        every = [(grid, name) for grid, rows in baselines.items() for name in rows]
        tell(0, len(every), "what all tokens say")
        assert self._reference
        for done, (grid, name) in enumerate(every):
            tell(done, len(every), f"{BASELINES[name].title} {grid}x{grid}")
            found[grid][name] = {**baselines[grid][name], VLM_KL: self.baseline(grid, name)}
        tell(len(every), len(every), "")
        return found

    @cached_property
    def _reference(self) -> Mapping[str, Tensor]:
        """The greedy answers from all tokens to P prompts about n images: `ids` [P, n, T] int64 with zeros behind the
        end of an answer, `lengths` [P, n], and the hidden states that predicted each token, `hidden` [P, n, T, D]."""
        return computed_once(self._store, f"vlm-{self._name}.safetensors", self._refer, Tensors())

    @torch.inference_mode()
    def _refer(self) -> Mapping[str, Tensor]:
        answers: list[Tensor] = []
        hidden: list[Tensor] = []
        for prompt in self._prompts:
            for images in self.images.split(BATCH):
                prefill = self.model.prefill(self._store.tokens(images), prompt)
                own = [torch.tensor(answer) for answer in self.model.answer(prefill, self._settings.tokens)]
                hidden += self.model.follow(prefill, pad_sequence(own, batch_first=True)).float().cpu().unbind()
                answers += own
        shape = (len(self._prompts), len(self.images))
        ids = pad_sequence(answers, batch_first=True)
        lengths = torch.tensor([len(answer) for answer in answers])
        states = pad_sequence(hidden, batch_first=True)
        return {
            "ids": ids.unflatten(0, shape),
            "lengths": lengths.unflatten(0, shape),
            "hidden": states.unflatten(0, shape),
        }

    @torch.inference_mode()
    def _divergence(self, codec: Codec | ImageCodec) -> float:
        """Return the mean divergence; the codec is where the model is."""
        reference, total = self._reference, 0.0
        for places in torch.arange(len(self.images)).split(BATCH):
            images = self.images[places]
            compressed = compress_only(codec, self._store.tokens(images).float().to(self.model.device), images)
            for number, prompt in enumerate(self._prompts):
                ids, lengths, hidden = (reference[key][number, places] for key in ("ids", "lengths", "hidden"))
                logs = self.model.logits(self.model.follow(self.model.prefill(compressed, prompt), ids))
                total += sum(
                    divergence(self.model.logits(theirs[:length]), mine[:length])
                    for theirs, mine, length in zip(hidden, logs, lengths.tolist(), strict=True)
                )
        return total / (len(self.images) * len(self._prompts))

"""A frozen vision-language model as a judge of compressors, on held-out images of a token store.

`vlm/kl` is the mean divergence of `tokconv.exports.answers.next_tokens` over prompts and images, `vlm/agreement` the
share of answers that begin with the same tokens. A compressor whose errors all push one way can have the lower
divergence and change more answers. Those of every baseline are computed once beside the store.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from tokconv.config.tree import Config
from tokconv.evaluation import protocol
from tokconv.evaluation.baselines.codecs import baseline_codec, fit_version, on_device
from tokconv.evaluation.baselines.registry import BASELINES
from tokconv.evaluation.codecs import Codec, ImageCodec, compress_only
from tokconv.evaluation.evaluator import Figures
from tokconv.evaluation.figures import VLM_AGREEMENT, VLM_KL
from tokconv.exports.answers.last_epoch import JudgeSettings
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.next_tokens import BATCH, NextTokens
from tokconv.exports.answers.stores import check_tower
from tokconv.store.cache import JsonFigures, computed_once
from tokconv.store.reader import TokenStore

VERSION = 2
"""Grows with every change of the figures."""


class VlmJudge:
    """The judge of one store.

    Args:
        store: its held-out images are judged on, `settings.images` of them that a fixed seed chooses.
        device: where the model runs.
        model: that of the settings, if it is loaded already.

    Attributes:
        model: the model.
        images: [n] int64, ascending, the judged images.

    Raises:
        DataError: the directory holds no model that can answer.
        ConfigError: the store does not hold the tokens that its projector reads.

    Example:
        >>> judge = VlmJudge(store, JudgeSettings(Path("llava"), ("What is this?",), 64, 8), device)   # doctest: +SKIP
        >>> judge(codec_of(compressor, decoder))                                                      # doctest: +SKIP
        {'vlm/kl': 0.21, 'vlm/agreement': 0.83}
    """

    def __init__(
        self, store: TokenStore, settings: JudgeSettings, device: torch.device, model: AnsweringModel | None = None
    ) -> None:
        self._store = store
        self.model = AnsweringModel(settings.model, device) if model is None else model
        generator = torch.Generator().manual_seed(protocol.SEED)
        order = torch.randperm(len(store.val_indices), generator=generator)[: settings.images]
        self.images: Tensor = store.val_indices[order].sort().values
        self._said = NextTokens(store, settings, self.model, self.images)

    def check_tower(self, config: Config | None = None) -> None:
        """Raise ConfigError unless the model's own tower makes the tokens of the store (`stores.check_tower`)."""
        check_tower(self._store, self.model, int(self.images[0]), config)

    @torch.inference_mode()
    def __call__(self, codec: Codec | ImageCodec) -> Figures:
        """Return the figures of a codec, which is where the model is, by their names."""
        said, far, same = self._said, 0.0, 0
        for places in torch.arange(len(self.images)).split(BATCH):
            images = self.images[places]
            compressed = compress_only(codec, self._store.tokens(images).float().to(self.model.device), images)
            own, agrees = said.compare(compressed, places)
            far, same = far + float(own.sum()), same + int(agrees.sum())
        count = len(self.images) * len(said.prompts)
        return {VLM_KL: far / count, VLM_AGREEMENT: same / count}

    def baseline(self, grid: int, name: str) -> Figures:
        """Return the figures of a baseline at a grid, computed once per store and judge."""

        def measure() -> dict[str, Figures]:
            codec = on_device(baseline_codec(self._store, grid, name), self.model.device)
            return {name: self(codec)}

        file = f"vlm-{self._said.name}-{name}-v{VERSION}.{fit_version(BASELINES[name])}-grid-{grid:02d}.json"
        return computed_once(self._store, file, measure, JsonFigures("vlm"))[name]

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
        self._said.prepare()
        for done, (grid, name) in enumerate(every):
            tell(done, len(every), f"{BASELINES[name].title} {grid}x{grid}")
            found[grid][name] = {**baselines[grid][name], **self.baseline(grid, name)}
        tell(len(every), len(every), "")
        return found

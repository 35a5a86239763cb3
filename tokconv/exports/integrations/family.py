"""What differs between families of vision-language models, and the checks that all of them share.

A compressor reads the patch tokens of a hidden layer of the tower, as a store holds them. Each family says which of its
modules receives these tokens first; there the compressor goes, and all that follows sees k x k tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

import numpy as np
from transformers import PreTrainedModel, ProcessorMixin

from tokconv.encoding.towers.families import FAMILIES, layer_from_start
from tokconv.errors import ConfigError
from tokconv.models.compressor import Compressor


class Reducer(Protocol):
    """What a family must know of a compressor: the side of its grids, and the width of its tokens."""

    @property
    def token_grid(self) -> int: ...
    @property
    def output_grid_size(self) -> int: ...
    @property
    def num_output_tokens(self) -> int: ...
    @property
    def dim(self) -> int: ...


@dataclass(frozen=True)
class Reduction:
    """A reducer without a compressor, for tokens that something else has made fewer."""

    token_grid: int
    output_grid_size: int
    dim: int

    @property
    def num_output_tokens(self) -> int:
        """k * k."""
        return self.output_grid_size**2


class VisionLanguageFamily(ABC):
    """One family of vision-language models in transformers."""

    name: ClassVar[str]
    model_class: ClassVar[type[PreTrainedModel]]
    processor_class: ClassVar[type[ProcessorMixin]]
    host: ClassVar[str]
    """The path of the module whose first input are the tower's patch tokens [B, N, C]."""
    tower: ClassVar[str] = "model.vision_tower"
    tiles: ClassVar[bool] = False
    """Whether the size of an image decides into how many tiles it is cut."""
    causal: ClassVar[bool] = True
    """Whether what the model makes of the beginning of a prompt, image included, does not depend on the rest."""
    template: ClassVar[str] = "{image} {question}"
    """The prompt of a question, for a processor without a chat template."""

    def placeholder(self, processor: Any) -> str:
        """Return what stands for an image in the text that a processor takes."""
        found: str = processor.image_token
        return found

    @abstractmethod
    def layer_read(self, config: Any) -> int:
        """Return the index in `hidden_states` that the host receives, possibly counted from the end.

        Raises:
            ConfigError: the model reads several layers.
        """

    @abstractmethod
    def check_processor(self, config: Any, processor: Any) -> None:
        """Raise ConfigError unless the processor writes the tower's own number of tokens per image."""

    @abstractmethod
    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        """Make the processor write the number of tokens that the compressor leaves."""

    def check_model(self, config: Any, compressor: Reducer) -> None:
        """Raise ConfigError unless the tower gives a fixed square grid of tokens, and the compressor is made for it."""
        kind = config.vision_config.model_type
        if kind not in FAMILIES:
            raise ConfigError(f"attach: a vision tower of type {kind!r}; allowed: {', '.join(FAMILIES)}")
        check_size(config, compressor)

    def change_model(self, model: Any, compressor: Reducer, undo: ExitStack) -> None:  # noqa: B027 (most need none)
        """Change what follows the host and depends on the number of tokens."""

    def num_image_tokens(self, config: Any, compressor: Reducer) -> int:
        """Return how many tokens the language model reads per image, or per tile of an image that is cut into tiles."""
        return compressor.num_output_tokens


def check_size(config: Any, compressor: Reducer) -> None:
    """Raise ConfigError for a compressor of another width or token grid than the tower's."""
    vision = config.vision_config
    for what, wanted, found in (
        ("width", compressor.dim, vision.hidden_size),
        ("token grid", compressor.token_grid, vision.image_size // vision.patch_size),
    ):
        if wanted != found:
            raise ConfigError(
                f"attach: the compressor's {what} is {wanted}, the vision tower's is {found}; train one on tokens of "
                "this tower (model.clip.model_name)"
            )


def check_trained_layer(family: VisionLanguageFamily, config: Any, compressor: Compressor, layer: int | None) -> None:
    """Raise ConfigError unless the compressor was trained on the layer that the model reads."""
    read = family.layer_read(config)
    recorded = None if compressor.description is None else int(compressor.description["encoder"]["layer"])
    if recorded is None and layer is None:
        raise ConfigError("attach: this compressor does not record which hidden layer it was trained on; give layer=")
    num_layers = config.vision_config.num_hidden_layers
    # The recorded layer may count from the end, if the compressor was trained on tokens from elsewhere.
    given, known, used = (
        None if index is None else layer_from_start(index, num_layers) for index in (layer, recorded, read)
    )
    if known is not None and given is not None and given != known:
        raise ConfigError(f"attach: layer={layer}, but the compressor was trained on hidden layer {known}")
    trained = known if known is not None else given
    if trained != used:
        raise ConfigError(
            f"attach: the compressor was trained on hidden layer {trained}, this model reads layer {used} ({read} "
            f"counted from the end); set model.clip.layer={read} and train one"
        )


def check_encoder(config: Any, compressor: Compressor, processor: Any = None) -> None:
    """Raise ConfigError for a compressor of another tower, as far as its export tells.

    That is the size of the images and, given a processor, how pixels are normalised. An export that was trained on
    ready-made tokens tells neither.
    """
    encoder = {} if compressor.description is None else compressor.description["encoder"]
    made, own = encoder.get("preprocessing") or {}, getattr(processor, "image_processor", None)
    compared = [("image_size", encoder.get("image_size"), config.vision_config.image_size)]
    if made.get("do_normalize", True) and getattr(own, "do_normalize", True):
        compared += [(name, made.get(name), getattr(own, name, None)) for name in ("image_mean", "image_std")]
    for name, trained, found in compared:
        # Published processors round the same values differently.
        if trained is not None and found is not None and not np.allclose(trained, found, rtol=0, atol=1e-3):
            raise ConfigError(
                f"attach: the compressor was trained on tokens of {encoder.get('name')}, whose {name} is {trained}; "
                f"that of this model is {found}; train one on tokens of this model's tower (model.clip.model_name)"
            )


def check_written(processor: Any, name: str, tokens: int) -> None:
    """Raise ConfigError unless this attribute of a processor, its tokens per image, is the model's own number."""
    found = getattr(processor, name)
    if found != tokens:
        raise ConfigError(f"attach: the processor's {name} is {found}, the model's images are {tokens} tokens; set it")


def set_until_detached(undo: ExitStack, target: Any, name: str, value: Any) -> None:
    """Set an attribute, and register its present value with what `detach` restores."""
    undo.callback(setattr, target, name, getattr(target, name))
    setattr(target, name, value)

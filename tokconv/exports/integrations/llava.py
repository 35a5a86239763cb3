"""LLaVA: the compressor goes between the vision tower and the projector.

There the patch tokens have the units that the compressor was trained on (Liu et al. 2023, arXiv:2304.08485, section
4.1: W applied to Z_v). The language model, the projector and their weights stay unchanged.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any, ClassVar

from torch import nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor, PreTrainedModel, ProcessorMixin

from tokconv.encoding.towers.families import FAMILIES
from tokconv.errors import ConfigError
from tokconv.exports.integrations.family import Reducer, VisionLanguageFamily, check_size, set_until_detached


class Llava(VisionLanguageFamily):
    """LLaVA-1.5 and all others of its class, with any tower of `FAMILIES`."""

    name = "LLaVA"
    model_class: ClassVar[type[PreTrainedModel]] = LlavaForConditionalGeneration
    processor_class: ClassVar[type[ProcessorMixin]] = LlavaProcessor
    host = "model.multi_modal_projector"
    template = "USER: {image}\n{question} ASSISTANT:"

    def layer_read(self, config: Any) -> int:
        read = config.vision_feature_layer
        if not isinstance(read, int):
            raise ConfigError(
                f"attach: vision_feature_layer is {read}; compressors read one layer, not several side by side"
            )
        return read

    def check_model(self, config: Any, compressor: Reducer) -> None:
        vision = config.vision_config
        if vision.model_type not in FAMILIES:
            raise ConfigError(f"attach: a vision tower of type {vision.model_type!r}; allowed: {', '.join(FAMILIES)}")
        family = FAMILIES[vision.model_type]
        special = family.num_special_tokens(vision.to_dict())
        if special > 1:
            raise ConfigError(
                f"attach: this {family.name} tower has {special - 1} register tokens, which a LLaVA passes on among "
                "the patch tokens; allowed: towers without register tokens"
            )
        strategy = "default" if special else "full"
        if config.vision_feature_select_strategy != strategy:
            raise ConfigError(
                f"attach: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; compressors "
                f"read only patch tokens, which a {family.name} tower gives with {strategy!r}"
            )
        check_size(config, compressor)

    def change_model(self, model: Any, compressor: Reducer, undo: ExitStack) -> None:
        undo.enter_context(model.model.register_forward_pre_hook(_check_layer, with_kwargs=True))

    def check_processor(self, config: Any, processor: Any) -> None:
        self.check_sections(config, processor, patch_size=config.vision_config.patch_size)
        # Before anything is changed, it must write the tower's own number of tokens for an image of the tower's size.
        side = config.vision_config.image_size
        tokens = (side // config.vision_config.patch_size) ** 2
        class_tokens = 1 if config.vision_feature_select_strategy == "default" else 0
        if processor.num_additional_image_tokens != class_tokens:
            raise ConfigError(
                f"attach: the processor's num_additional_image_tokens is {processor.num_additional_image_tokens}, "
                f"which does not make {tokens} tokens of a {side} x {side} image; set it to {class_tokens}"
            )

    def check_sections(self, config: Any, processor: Any, **wanted: Any) -> None:
        """Raise ConfigError unless the processor has these values, and the strategy of the model."""
        for name, value in {**wanted, "vision_feature_select_strategy": config.vision_feature_select_strategy}.items():
            found = getattr(processor, name)
            if found != value:
                raise ConfigError(
                    f"attach: the processor's {name} is {found!r}, the model's is {value!r}; set it first"
                )

    def change_processor(self, processor: Any, compressor: Reducer, undo: ExitStack) -> None:
        # The processor adds this to the number of patches, so any k works, even one that does not divide the grid.
        extra = processor.num_additional_image_tokens + compressor.num_output_tokens - compressor.token_grid**2
        set_until_detached(undo, processor, "num_additional_image_tokens", extra)


def _check_layer(model: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """Raise ConfigError if a call overrides what was checked when the compressor was attached."""
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        value, checked = given.get(name), getattr(model.config, name)
        if value is not None and value != checked:
            raise ConfigError(f"{name}={value!r}: the attached compressor reads {checked!r}; detach it first")

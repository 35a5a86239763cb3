"""A LLaVA whose language model reads k * k compressed visual tokens instead of all of them.

The compressor goes between the vision tower and the projector, where LLaVA's patch tokens have the units that the
compressor was trained on (Liu et al. 2023, arXiv:2304.08485, section 4.1: W applied to Z_v). The language model, the
projector and their weights stay unchanged.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import LlavaForConditionalGeneration, LlavaProcessor
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tokconv.encoding.towers.families import FAMILIES, layer_from_start
from tokconv.errors import ConfigError
from tokconv.exports.artefact import load_compressor, save_compressor
from tokconv.models.compressor import Compressor

NAME = "compressor"
"""The name of the compressor as a child of the projector, so that it moves, trains and is counted with the model."""


class Attachment(AbstractContextManager["Attachment"]):
    """An attached compressor. `detach` takes it out again; as a context manager it does so at the end.

    Attributes:
        compressor: the module that runs; its parameters are among the model's own.
        num_image_tokens: k * k, the tokens that the language model reads per image.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, compressor: Compressor, processor: LlavaProcessor | None
    ) -> None:
        self.compressor, self.num_image_tokens = compressor, compressor.num_output_tokens
        self._undo = ExitStack()
        projector = model.model.multi_modal_projector
        compressor.to(next(projector.parameters()).device)
        projector.add_module(NAME, compressor)
        self._undo.callback(delattr, projector, NAME)
        self._undo.enter_context(projector.register_forward_pre_hook(_compress))
        self._undo.enter_context(model.model.register_forward_pre_hook(_check_layer, with_kwargs=True))
        # A bound method, not a closure, so that a deep copy of the model saves itself.
        model.save_pretrained = MethodType(_save_pretrained, model)  # type: ignore[method-assign]
        self._undo.callback(delattr, model, "save_pretrained")
        if processor is not None:
            extra = processor.num_additional_image_tokens
            self._undo.callback(setattr, processor, "num_additional_image_tokens", extra)
            # The processor adds this to the number of patches, so any k works, even one that does not divide the grid.
            processor.num_additional_image_tokens = extra + self.num_image_tokens - compressor.token_grid**2

    def detach(self) -> None:
        """Restore model and processor; the compressor stays on its device. Calling it again has no further effect."""
        self._undo.close()

    def __exit__(self, *error: object) -> None:
        self.detach()


def attach(
    model: LlavaForConditionalGeneration,
    compressor: Compressor | str | Path,
    processor: LlavaProcessor | None = None,
    *,
    layer: int | None = None,
) -> Attachment:
    """Make a LLaVA read k * k visual tokens per image: the tower's [B, N, C] reach its projector as [B, k * k, C].

    The compressor becomes part of the model: `.to`, `.train`, `parameters()` and gradients reach it. It computes in its
    own dtype; its output has the model's. `model.save_pretrained(folder)` writes the plain LLaVA, and the compressor to
    `folder/compressor`; attaching that one to it makes the same model again. In a checkpoint of transformers' Trainer,
    `checkpoint-N`, the weights of the LLaVA include the compressor's, so that resuming from it restores both.

    Args:
        model: changed in place, until `detach`.
        compressor: an exported folder, or what `tokconv.load_compressor` returned for one.
        processor: changed in place to write k * k image tokens per image. Without it, writing them is up to you; the
            model raises for a prompt with another number.
        layer: the hidden layer that the compressor was trained on, as LLaVA's `vision_feature_layer` or an index of
            `hidden_states`; needed only for a compressor that does not come from an export.

    Raises:
        ConfigError: another class of model, a compressor of another layer, width or grid, a processor that does not
            fit, or a model that already has a compressor. The model is then unchanged.
        CheckpointError: the path holds no exported compressor.

    Example:
        >>> from tokconv.integrations.llava import attach                      # doctest: +SKIP
        >>> attach(model, "runs/sweeps/demo-001/champions/grid-06/fidelity", processor)   # doctest: +SKIP
        >>> inputs = processor(images=image, text="<image> What is this?", return_tensors="pt")  # doctest: +SKIP
        >>> model.generate(**inputs)                                           # 36 image tokens   # doctest: +SKIP
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ConfigError(f"attach: the model is a {type(model).__name__}; allowed: LlavaForConditionalGeneration")
    if hasattr(model.model.multi_modal_projector, NAME):
        raise ConfigError("attach: this model already has a compressor; detach it first")
    if not isinstance(compressor, Compressor):
        compressor = load_compressor(compressor)
    _check_tower(model.config, compressor)
    _check_trained_layer(model.config, compressor, layer)
    if processor is not None:
        _check_processor(model.config, processor)
    return Attachment(model, compressor, processor)


def _check_tower(config: Any, compressor: Compressor) -> None:
    vision = config.vision_config
    if vision.model_type not in FAMILIES:
        raise ConfigError(f"attach: a vision tower of type {vision.model_type!r}; allowed: {', '.join(FAMILIES)}")
    family = FAMILIES[vision.model_type]
    special = family.num_special_tokens(vision.to_dict())
    if special > 1:
        raise ConfigError(
            f"attach: this {family.name} tower has {special - 1} register tokens, which a LLaVA passes on among the "
            "patch tokens; allowed: towers without register tokens"
        )
    strategy = "default" if special else "full"
    if config.vision_feature_select_strategy != strategy:
        raise ConfigError(
            f"attach: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; compressors read "
            f"only patch tokens, which a {family.name} tower gives with {strategy!r}"
        )
    for what, wanted, found in (
        ("width", compressor.dim, vision.hidden_size),
        ("token grid", compressor.token_grid, vision.image_size // vision.patch_size),
    ):
        if wanted != found:
            raise ConfigError(
                f"attach: the compressor's {what} is {wanted}, the vision tower's is {found}; train one on tokens of "
                "this tower (model.clip.model_name)"
            )


def _check_trained_layer(config: Any, compressor: Compressor, layer: int | None) -> None:
    read = config.vision_feature_layer
    if not isinstance(read, int):
        raise ConfigError(
            f"attach: vision_feature_layer is {read}; compressors read one layer, not several side by side"
        )
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
            f"attach: the compressor was trained on hidden layer {trained}, this model reads layer {used} "
            f"(vision_feature_layer={read}); set model.clip.layer={read} and train one"
        )


def _check_processor(config: Any, processor: LlavaProcessor) -> None:
    if not isinstance(processor, LlavaProcessor):
        raise ConfigError(f"attach: the processor is a {type(processor).__name__}; allowed: LlavaProcessor")
    vision = config.vision_config
    for name, section in (("patch_size", vision), ("vision_feature_select_strategy", config)):
        wanted, found = getattr(section, name), getattr(processor, name)
        if found != wanted:
            raise ConfigError(f"attach: the processor's {name} is {found!r}, the model's is {wanted!r}; set it first")
    # Before anything is changed, it must write the tower's own number of tokens for an image of the tower's size.
    side = vision.image_size
    tokens = (side // vision.patch_size) ** 2
    class_tokens = 1 if config.vision_feature_select_strategy == "default" else 0
    if processor.num_additional_image_tokens != class_tokens:
        raise ConfigError(
            f"attach: the processor's num_additional_image_tokens is {processor.num_additional_image_tokens}, which "
            f"does not make {tokens} tokens of a {side} x {side} image; set it to {class_tokens}"
        )


def _compress(projector: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens_BNC: Tensor = arguments[0]
    compressor = getattr(projector, NAME)
    own = next(compressor.parameters()).dtype
    compressed: Tensor = compressor(tokens_BNC.to(own))
    return (compressed.to(tokens_BNC.dtype), *arguments[1:])


def _check_layer(model: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """Raise ConfigError if a call overrides what was checked when the compressor was attached."""
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        value, checked = given.get(name), getattr(model.config, name)
        if value is not None and value != checked:
            raise ConfigError(f"{name}={value!r}: the attached compressor reads {checked!r}; detach it first")


def _save_pretrained(self: LlavaForConditionalGeneration, save_directory: str | Path, **options: Any) -> None:
    state: Mapping[str, Tensor] = options.pop("state_dict", None) or self.state_dict()
    own = f"model.multi_modal_projector.{NAME}."
    compressor = getattr(self.model.multi_modal_projector, NAME)
    if compressor.description is None:
        raise ConfigError(
            "save_pretrained: the attached compressor does not come from an export, so it cannot be written as one; "
            "detach it and save the two separately"
        )
    if re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-\d+", Path(save_directory).name):
        # Trainer resumes by `model.load_state_dict(..., strict=False)`: what the file lacks, or names as older
        # versions of transformers did, stays as it was before the training.
        saved = dict(state)
        options["save_original_format"] = False
    else:
        saved = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
    type(self).save_pretrained(self, save_directory, state_dict=saved, **options)
    if options.get("is_main_process", True):
        weights = {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}
        save_compressor(compressor, Path(save_directory) / NAME, weights)

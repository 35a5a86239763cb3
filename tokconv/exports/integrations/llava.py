"""A LLaVA whose language model reads k * k compressed visual tokens instead of all of them.

The compressor goes between the vision tower and the projector, where LLaVA's patch tokens are in the units that it was
trained on (Liu et al. 2023, arXiv:2304.08485, section 4.1: W applied to Z_v). The language model, the projector and
their weights stay as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MethodType, TracebackType
from typing import Any

from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import LlavaForConditionalGeneration, LlavaProcessor

from tokconv.encoding.towers.families import FAMILIES, layer_from_start
from tokconv.errors import ConfigError
from tokconv.exports.artefact import load_compressor, save_compressor
from tokconv.models.compressor import Compressor

NAME = "compressor"
"""The compressor is this child of the projector, so that it moves, trains and is counted with the model."""


class Attachment:
    """What `attach` returns: undo it with `detach`, or use it as a context manager.

    Attributes:
        compressor: the module that runs; its parameters are among the model's own.
        num_image_tokens: k * k, what an image costs the language model.
    """

    def __init__(
        self, model: LlavaForConditionalGeneration, compressor: Compressor, processor: LlavaProcessor | None
    ) -> None:
        self.compressor, self.num_image_tokens = compressor, compressor.num_output_tokens
        self._model, self._processor = model, processor
        projector = model.model.multi_modal_projector
        compressor.to(next(projector.parameters()).device)
        projector.add_module(NAME, compressor)
        self._undo: list[RemovableHandle] = [
            projector.register_forward_pre_hook(_compress),
            model.model.register_forward_pre_hook(_check_layer, with_kwargs=True),
        ]
        # Bound, not a closure: a deep copy of the model then saves itself.
        model.save_pretrained = MethodType(_save_pretrained, model)  # type: ignore[method-assign]
        if processor is not None:
            self._extra = processor.num_additional_image_tokens
            # Any k, also one that does not divide the grid: the processor adds this to what the patches give.
            processor.num_additional_image_tokens += self.num_image_tokens - compressor.token_grid**2

    def detach(self) -> None:
        """Restore model and processor; the compressor stays where it is, on its device. Twice is once."""
        if not self._undo:
            return
        for handle in self._undo:
            handle.remove()
        self._undo.clear()
        delattr(self._model.model.multi_modal_projector, NAME)
        del self._model.__dict__["save_pretrained"]
        if self._processor is not None:
            self._processor.num_additional_image_tokens = self._extra

    def __enter__(self) -> Attachment:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()


def attach(
    model: LlavaForConditionalGeneration,
    compressor: Compressor | str | Path,
    processor: LlavaProcessor | None = None,
    *,
    layer: int | None = None,
) -> Attachment:
    """Make a LLaVA consume k * k visual tokens an image: the tower's [B, N, C] reach its projector as [B, k * k, C].

    The compressor becomes part of the model: `.to`, `.train`, `parameters()` and gradients reach it. It computes in its
    own dtype, and its output has the model's. `model.save_pretrained(folder)` writes the plain LLaVA and, in
    `folder/compressor`, the compressor, from which `attach` makes the same model again.

    Args:
        model: changed in place, until `detach`.
        compressor: an exported folder, or what `tokconv.load_compressor` made of one.
        processor: changed in place to write k * k image tokens a picture. Without it that is left to you, and a prompt
            with another number is refused by the model.
        layer: the hidden layer that the compressor was trained on; only needed for one that does not know it because
            it does not come from an export. As LLaVA's `vision_feature_layer`, or an index of `hidden_states`.

    Raises:
        ConfigError: another model, a compressor of another layer, width or grid, a processor that does not fit, or a
            model that has a compressor already. Nothing is changed then.
        CheckpointError: no exported compressor at that path.

    Example:
        >>> from tokconv.integrations.llava import attach                      # doctest: +SKIP
        >>> attach(model, "runs/sweeps/demo-001/champions/grid-06", processor)   # doctest: +SKIP
        >>> inputs = processor(images=image, text="<image> What is this?", return_tensors="pt")  # doctest: +SKIP
        >>> model.generate(**inputs)                                           # 36 image tokens   # doctest: +SKIP
    """
    if not isinstance(model, LlavaForConditionalGeneration):
        raise ConfigError(f"attach: the model is a {type(model).__name__}; allowed: LlavaForConditionalGeneration")
    if hasattr(model.model.multi_modal_projector, NAME):
        raise ConfigError("attach: this model has a compressor already; detach it first")
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
        raise ConfigError(f"attach: a vision tower of type {vision.model_type!r}; allowed: CLIP and SigLIP towers")
    family = FAMILIES[vision.model_type]
    strategy = "default" if family.num_class_tokens else "full"
    if config.vision_feature_select_strategy != strategy:
        raise ConfigError(
            f"attach: vision_feature_select_strategy is {config.vision_feature_select_strategy!r}; compressors read "
            f"patch tokens alone, which a {family.name} tower gives with {strategy!r}"
        )
    grid = vision.image_size // vision.patch_size
    for what, wanted, there in (
        ("width", compressor.dim, vision.hidden_size),
        ("token grid", compressor.token_grid, grid),
    ):
        if wanted != there:
            raise ConfigError(
                f"attach: the compressor's {what} is {wanted}, the vision tower's is {there}; train one on tokens of "
                "this tower (model.clip.model_name)"
            )


def _check_trained_layer(config: Any, compressor: Compressor, layer: int | None) -> None:
    read = config.vision_feature_layer
    if not isinstance(read, int):
        raise ConfigError(
            f"attach: vision_feature_layer is {read}; compressors read one layer, not several side by side"
        )
    said = None if compressor.description is None else int(compressor.description["encoder"]["layer"])
    if said is None and layer is None:
        raise ConfigError("attach: this compressor does not say which hidden layer it was trained on; give layer=")
    num_layers = config.vision_config.num_hidden_layers
    # Counted from the end where the compressor was trained on tokens that somebody else had encoded.
    given, known, there = (
        None if index is None else layer_from_start(index, num_layers) for index in (layer, said, read)
    )
    if known is not None and given is not None and given != known:
        raise ConfigError(f"attach: layer={layer}, and the compressor says that it was trained on hidden layer {known}")
    trained = known if known is not None else given
    if trained != there:
        raise ConfigError(
            f"attach: the compressor was trained on hidden layer {trained}, this model reads layer {there} "
            f"(vision_feature_layer={read}); set model.clip.layer={read} and train one"
        )


def _check_processor(config: Any, processor: LlavaProcessor) -> None:
    if not isinstance(processor, LlavaProcessor):
        raise ConfigError(f"attach: the processor is a {type(processor).__name__}; allowed: LlavaProcessor")
    vision = config.vision_config
    for name, wanted, there in (
        ("patch_size", vision.patch_size, processor.patch_size),
        (
            "vision_feature_select_strategy",
            config.vision_feature_select_strategy,
            processor.vision_feature_select_strategy,
        ),
    ):
        if there != wanted:
            raise ConfigError(f"attach: the processor's {name} is {there!r}, the model's is {wanted!r}; set it first")
    # What it writes for one picture of the tower's size, before anything is changed.
    side = vision.image_size
    tokens = (side // vision.patch_size) ** 2
    class_tokens = 1 if config.vision_feature_select_strategy == "default" else 0
    if processor.num_additional_image_tokens != class_tokens:
        raise ConfigError(
            f"attach: the processor's num_additional_image_tokens is {processor.num_additional_image_tokens}, which "
            f"does not make {tokens} tokens of a {side} x {side} picture; set it to {class_tokens}"
        )


def _compress(projector: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens_BNC: Tensor = arguments[0]
    compressor = getattr(projector, NAME)
    own = next(compressor.parameters()).dtype
    compressed: Tensor = compressor(tokens_BNC.to(own))
    return (compressed.to(tokens_BNC.dtype), *arguments[1:])


def _check_layer(model: nn.Module, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> None:
    """What was checked when it was attached must not be overruled call by call."""
    for name in ("vision_feature_layer", "vision_feature_select_strategy"):
        value, checked = given.get(name), getattr(model.config, name)
        if value is not None and value != checked:
            raise ConfigError(f"{name}={value!r}: the attached compressor reads {checked!r}; detach it first")


def _save_pretrained(self: LlavaForConditionalGeneration, save_directory: str | Path, **options: Any) -> None:
    state: Mapping[str, Tensor] = options.pop("state_dict", None) or self.state_dict()
    own = f"model.multi_modal_projector.{NAME}."
    plain = {name: tensor for name, tensor in state.items() if not name.startswith(own)}
    compressor = getattr(self.model.multi_modal_projector, NAME)
    if compressor.description is None:
        raise ConfigError(
            "save_pretrained: the attached compressor does not come from an export, so it cannot be written as one; "
            "detach it and save the two apart"
        )
    type(self).save_pretrained(self, save_directory, state_dict=plain, **options)
    if options.get("is_main_process", True):
        weights = {name.removeprefix(own): tensor for name, tensor in state.items() if name.startswith(own)}
        save_compressor(compressor, Path(save_directory) / NAME, weights)

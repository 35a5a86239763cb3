"""A compressor inside a vision-language model: putting it in, taking it out, saving both."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import MethodType
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel, ProcessorMixin
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from tokconv.errors import ConfigError
from tokconv.exports.artefact import save_compressor
from tokconv.exports.integrations.family import VisionLanguageFamily
from tokconv.models.compressor import Compressor

NAME = "compressor"
"""The name of the compressor as a child of its host, so that it moves, trains and is counted with the model."""
HOST = "compressor_host"
"""The attribute of a model with a compressor that says where in it the compressor is."""


class Attachment(AbstractContextManager["Attachment"]):
    """An attached compressor. `detach` takes it out again; as a context manager it does so at the end.

    Attributes:
        compressor: the module that runs; its parameters are among the model's own.
        num_image_tokens: how many tokens the language model reads per image, or per tile of an image that the model
            cuts into tiles; k * k, except where the model itself packs several tokens into one.
    """

    def __init__(
        self,
        family: VisionLanguageFamily,
        model: PreTrainedModel,
        compressor: Compressor,
        processor: ProcessorMixin | None,
    ) -> None:
        self.compressor = compressor
        self.num_image_tokens = family.num_image_tokens(model.config, compressor)
        self._undo = ExitStack()
        install(family, model, compressor, self._undo)
        # A bound method, not a closure, so that a deep copy of the model saves itself.
        model.save_pretrained = MethodType(_save_pretrained, model)  # type: ignore[method-assign]
        self._undo.callback(delattr, model, "save_pretrained")
        if processor is not None:
            family.change_processor(processor, compressor, self._undo)

    def detach(self) -> None:
        """Restore model and processor; the compressor stays on its device. Calling it again has no further effect."""
        self._undo.close()

    def __exit__(self, *error: object) -> None:
        self.detach()


def install(family: VisionLanguageFamily, model: Any, compressor: Compressor, undo: ExitStack) -> None:
    """Make the compressor a child of its host, and run it on what the host receives."""
    host = model.get_submodule(family.host)
    compressor.to(next(host.parameters()).device)
    host.add_module(NAME, compressor)
    undo.callback(delattr, host, NAME)
    undo.enter_context(host.register_forward_pre_hook(_compress))
    setattr(model, HOST, family.host)
    undo.callback(delattr, model, HOST)
    family.change_model(model, compressor, undo)


def compressor_of(model: nn.Module) -> Compressor | None:
    """Return the compressor inside a vision-language model, None if it has none."""
    host = getattr(model, HOST, None)
    return None if host is None else getattr(model.get_submodule(host), NAME)


def own_prefix(model: nn.Module) -> str:
    """Return what the compressor's names in the model's state dict begin with."""
    return f"{getattr(model, HOST)}.{NAME}."


def _compress(host: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
    tokens_BNC: Tensor = arguments[0]
    compressor = getattr(host, NAME)
    own = next(compressor.parameters()).dtype
    compressed: Tensor = compressor(tokens_BNC.to(own))
    return (compressed.to(tokens_BNC.dtype), *arguments[1:])


def _save_pretrained(self: PreTrainedModel, save_directory: str | Path, **options: Any) -> None:
    state: Mapping[str, Tensor] = options.pop("state_dict", None) or self.state_dict()
    own, compressor = own_prefix(self), compressor_of(self)
    assert compressor is not None
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

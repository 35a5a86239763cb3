"""A vision-language model and its compressor as one folder that `from_pretrained` loads.

The folder has its own `model_type`, such as tokconv_llava. transformers' own class would load the model and leave out
the compressor in silence; of a type that it does not know it says so, until `import tokconv.hf` has registered it.
Weights are written under the names that they have in memory, so that loading needs no conversion of names, which
transformers registers by type and would not find for another one.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForImageTextToText, PreTrainedModel, ProcessorMixin

from tokconv.errors import CheckpointError, ConfigError
from tokconv.exports.artefact import build_described, check_format
from tokconv.exports.integrations.attach import SUPPORTED, attach, family_of
from tokconv.exports.integrations.attachment import NAME, compressor_of, install
from tokconv.exports.integrations.family import VisionLanguageFamily
from tokconv.models.compressor import Compressor
from tokconv.models.registry import build_compressor
from tokconv.models.windows import Windows
from tokconv.system.files import atomic_path

KEY = "tokconv"
"""The entry of config.json that describes the compressor."""


class _Merged:
    """What a model with a compressor of its own adds to its class."""

    family: VisionLanguageFamily
    # Also when the model is loaded in half precision, as an attached compressor.
    _keep_in_fp32_modules_strict = (NAME,)

    def __init__(self, config: Any) -> None:
        super().__init__(config)  # type: ignore[call-arg]
        description: Any = getattr(config, KEY, None)
        check_format(description, config.name_or_path)
        # On the CPU, although transformers builds models on the meta device: the windows are computed, not loaded.
        with torch.device("cpu"):
            compressor = build_described(build_compressor, "compressor", description, config.name_or_path)
        compressor.description = dict(description)
        install(self.family, self, compressor.eval(), ExitStack())

    @classmethod
    def from_pretrained(cls, *arguments: Any, **options: Any) -> Any:
        """Load a merged folder, as the base class does."""
        loaded = super().from_pretrained(*arguments, **options)  # type: ignore[misc]
        # No file holds the windows, and transformers leaves empty what it did not load. A part of the model may be a
        # model of its own, whose initialisation does not ask this class.
        for module in (loaded[0] if isinstance(loaded, tuple) else loaded).modules():
            if isinstance(module, Windows):
                for name, buffer in Windows(module.token_grid, module.output_grid).named_buffers():
                    getattr(module, name).copy_(buffer)
        return loaded


def merged_class(family: VisionLanguageFamily) -> type[PreTrainedModel]:
    """Return the class of a family's models with a compressor of their own; the same one every time."""
    return _CLASSES[family.model_class]


def merge(
    model: PreTrainedModel,
    compressor: Compressor | str | Path,
    processor: ProcessorMixin,
    out: str | Path,
    *,
    layer: int | None = None,
) -> Path:
    """Write a model, its compressor and its processor, which writes k * k tokens, as one folder, whole or not at all.

    In a fresh process, `import tokconv.hf`, then `AutoModelForImageTextToText.from_pretrained(out)` and
    `AutoProcessor.from_pretrained(out)`. Without the import, loading fails; it never leaves out the compressor.

    Args:
        model: as for `attach`; unchanged afterwards. Its tensors are not copied.
        compressor: an export, [B, N, C] -> [B, k*k, C], as for `attach`.
        out: a folder that is missing or empty.
        layer: as for `attach`.

    Returns:
        `out`.

    Raises:
        ConfigError, CheckpointError: as `attach`; the compressor does not come from an export; `out` holds something.

    Example:
        >>> merge(model, "my-compressor", processor, "merged")                # doctest: +SKIP
        >>> import tokconv.hf                                                 # doctest: +SKIP
        >>> model = AutoModelForImageTextToText.from_pretrained("merged")     # doctest: +SKIP
    """
    out = Path(out)
    check_free(out)
    with attach(model, compressor, processor, layer=layer):
        inside = compressor_of(model)
        assert inside is not None
        if inside.description is None:
            raise ConfigError("merge: the compressor does not come from an export, so it has no description to write")
        kind = merged_class(family_of(model))
        values = {**model.config.to_dict(), KEY: inside.description}
        values.pop("model_type")
        config = kind.config_class(**values)  # type: ignore[misc]
        config.architectures = [kind.__name__]
        with torch.device("meta"):
            whole = kind(config)
        whole.load_state_dict(model.state_dict(), assign=True)
        whole.generation_config = model.generation_config
        with atomic_path(out) as temporary:
            whole.save_pretrained(temporary, save_original_format=False)
            processor.save_pretrained(temporary)
    return out


def check_free(out: Path) -> None:
    """Raise CheckpointError unless a folder is missing or empty."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out}: exists; choose another place")


def _make_class(family: VisionLanguageFamily) -> type[PreTrainedModel]:
    base: Any = family.model_class
    of_config = type(
        f"Tokconv{base.config_class.__name__}",
        (base.config_class,),
        {"model_type": f"{KEY}_{base.config_class.model_type}", "__module__": __name__},
    )
    made: type[PreTrainedModel] = type(
        f"Tokconv{base.__name__}",
        (_Merged, base),
        {"config_class": of_config, "config": None, "family": family, "__module__": __name__},
    )
    return made


_CLASSES = {family.model_class: _make_class(family) for family in SUPPORTED}


def register() -> None:
    """Make transformers' Auto classes load merged folders."""
    for made in _CLASSES.values():
        of_config: Any = made.config_class
        AutoConfig.register(of_config.model_type, of_config, exist_ok=True)
        AutoModelForImageTextToText.register(of_config, made, exist_ok=True)

"""Loading a vision-language model and its processor by name or folder, whole or without its language model's layers."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

from tokconv.encoding.towers.hub import quiet_transformers
from tokconv.errors import DataError, first_line


def load_vlm(name: str, *, visual_only: bool = False) -> tuple[PreTrainedModel, ProcessorMixin]:
    """Load a model in the dtype it was saved in, in eval mode on the CPU, and its processor.

    Args:
        name: a folder, or a name on the hub.
        visual_only: leave out the layers of the language model, which are nearly all of the weights. What remains
            computes the embeddings of images, and nothing else.

    Raises:
        DataError: it cannot be loaded.

    Example:
        >>> model, processor = load_vlm("llava-hf/llava-1.5-7b-hf")            # doctest: +SKIP
    """
    options: dict[str, Any] = {}
    processors: Any = AutoProcessor
    try:
        with quiet_transformers():
            if visual_only:
                config = AutoConfig.from_pretrained(name)
                text = config.text_config
                text.num_hidden_layers = 0
                if getattr(text, "layer_types", None) is not None:
                    text.layer_types = []
                options["config"] = config
            model: Any = AutoModelForImageTextToText.from_pretrained(name, dtype="auto", **options)
            processor: Any = processors.from_pretrained(name)
    except Exception as error:  # transformers and safetensors raise many kinds, including plain Exception
        raise DataError(
            f"{name}: cannot be loaded as a vision-language model and its processor ({first_line(error)}); give a "
            "folder that save_pretrained wrote, or download the model first"
        ) from error
    return model.eval(), processor

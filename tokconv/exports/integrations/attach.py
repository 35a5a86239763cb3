"""`attach`: a compressor inside a vision-language model, whose language model then reads k * k tokens per image."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, ProcessorMixin

from tokconv.errors import ConfigError
from tokconv.exports.artefact import load_compressor
from tokconv.exports.integrations.attachment import Attachment, compressor_of
from tokconv.exports.integrations.family import VisionLanguageFamily, check_encoder, check_trained_layer
from tokconv.exports.integrations.gemma3 import Gemma3
from tokconv.exports.integrations.idefics3 import Idefics3, SmolVLM
from tokconv.exports.integrations.llava import Llava
from tokconv.exports.integrations.llava_next import LlavaNext
from tokconv.exports.integrations.llava_onevision import LlavaOnevision
from tokconv.exports.integrations.paligemma import PaliGemma
from tokconv.models.compressor import Compressor

SUPPORTED: tuple[VisionLanguageFamily, ...] = (
    *(Llava(), LlavaNext(), LlavaOnevision(), PaliGemma(), Gemma3(), Idefics3(), SmolVLM()),
)
QWEN = (
    "the number and shape of its tokens follow each image, and its rotary positions (mRoPE) are those of that grid; a "
    "compressor has one square grid"
)
RESAMPLER = "a resampler has already compressed its tokens to a fixed number of queries, which form no grid"
CROSS_ATTENTION = "its language model reads the image by cross-attention, not as tokens of the prompt"
REFUSED = {
    **dict.fromkeys(("qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_vl_moe", "qwen2_5_omni", "qwen3_5"), QWEN),
    **dict.fromkeys(("idefics2", "blip-2", "instructblip", "instructblipvideo"), RESAMPLER),
    **dict.fromkeys(("mllama", "idefics"), CROSS_ATTENTION),
    "llava_next_video": "it averages the tokens of every video frame after its projector; use LLaVA-NeXT for images",
    "pixtral": "the number and shape of its tokens follow each image; a compressor has one square grid",
}
"""`model_type` of models that cannot have a compressor -> why."""


def attach(
    model: PreTrainedModel,
    compressor: Compressor | str | Path,
    processor: ProcessorMixin | None = None,
    *,
    layer: int | None = None,
) -> Attachment:
    """Make a vision-language model read k * k visual tokens per image, or per tile of an image that it cuts into tiles.

    LLaVA, LLaVA-NeXT, LLaVA-OneVision (images), PaliGemma, Gemma 3, Idefics3 and SmolVLM; docs/vlm.md says what each
    of them does with the compressed grid.

    The compressor becomes part of the model: `.to`, `.train`, `parameters()` and gradients reach it. It computes in its
    own dtype; its output has the model's. `model.save_pretrained(folder)` writes the plain model, and the compressor to
    `folder/compressor`; attaching that one to it makes the same model again. In a checkpoint of transformers' Trainer,
    `checkpoint-N`, the weights of the model include the compressor's, so that resuming from it restores both.

    Args:
        model: changed in place, until `detach`.
        compressor: an exported folder, or what `tokconv.load_compressor` returned for one; [B, N, C] -> [B, k*k, C].
        processor: changed in place to write that many image tokens. Without it, writing them is up to you; the model
            raises for a prompt with another number.
        layer: the hidden layer that the compressor was trained on, as an index of `hidden_states`; needed only for a
            compressor that does not come from an export.

    Raises:
        ConfigError: a class of model that cannot have a compressor; a compressor of another layer, width, grid or size
            of images; a processor that does not fit the model, or normalises pixels otherwise than the compressor's
            tower; or a model that already has a compressor. The model is then unchanged.
        CheckpointError: the path holds no exported compressor.

    Example:
        >>> from tokconv.integrations import attach                            # doctest: +SKIP
        >>> attach(model, "runs/sweeps/demo-001/champions/grid-06/plug-in", processor)    # doctest: +SKIP
        >>> inputs = processor(images=image, text="<image> What is this?", return_tensors="pt")  # doctest: +SKIP
        >>> model.generate(**inputs)                                           # 36 image tokens   # doctest: +SKIP
    """
    family = family_of(model)
    if compressor_of(model) is not None:
        raise ConfigError("attach: this model already has a compressor; detach it first")
    if not isinstance(compressor, Compressor):
        compressor = load_compressor(compressor)
    check(family, model.config, compressor, layer)
    if processor is not None:
        if not isinstance(processor, family.processor_class):
            wanted = family.processor_class.__name__
            raise ConfigError(f"attach: the processor is a {type(processor).__name__}; allowed: {wanted}")
        family.check_processor(model.config, processor)
        check_encoder(model.config, compressor, processor)
    return Attachment(family, model, compressor, processor)


def check(family: VisionLanguageFamily, config: Any, compressor: Compressor, layer: int | None = None) -> None:
    """Raise ConfigError unless a model of this config can have this compressor."""
    family.check_model(config, compressor)
    check_trained_layer(family, config, compressor, layer)
    check_encoder(config, compressor)


def family_of(model: object) -> VisionLanguageFamily:
    """Return the family of a model. Raises ConfigError for a model that cannot have a compressor, and says why."""
    for family in SUPPORTED:
        if isinstance(model, family.model_class):
            return family
    reason = REFUSED.get(getattr(getattr(model, "config", None), "model_type", ""), "")
    classes = ", ".join(family.model_class.__name__ for family in SUPPORTED)
    why = f" ({reason})" if reason else ""
    raise ConfigError(f"attach: the model is a {type(model).__name__}{why}; allowed: {classes}")

"""The frozen vision tower, which turns images into patch tokens.

Shapes: B images, N = G * G patch tokens without class and register tokens, C channels, H = W = image size.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.families import Family
from tokconv.encoding.towers.hub import BUNDLED, locate, quiet_transformers, weights_folder
from tokconv.encoding.towers.spec import EncoderSpec, describe, read_config
from tokconv.encoding.towers.thin import shorten
from tokconv.errors import DataError, first_line
from tokconv.system.devices import resolve_dtype

__all__ = ["BUNDLED", "EncoderSpec", "VisionTower", "describe", "preprocess"]

SIZES = ("size", "crop_size")
"""The settings of an image processor that follow the image size."""
MASK_TOKEN = "mask_token"
"""A weight of the DINO families that only their training used."""
_PREFIX = r"(?:(?:vision_model|dinov2|dinov2_with_registers|dinov3_vit)\.)?"
LAYER_KEY = re.compile(_PREFIX + r"(?:encoder\.|model\.)?layers?\.(\d+)\.")
EMBEDDINGS_KEY = re.compile(_PREFIX + r"(?:embeddings|pre_layrnorm)\.")


class VisionTower:
    """A frozen vision tower of one of the `FAMILIES`, without the layers after `model.clip.layer`.

    Dropping them is bit-identical to reading `hidden_states[layer]` of the full tower, and saves their cost. As in
    `hidden_states`, the layer norm after the last layer is never applied. Text tower and pooling head are not loaded
    and may be missing.

    Args:
        clip: the name, layer, image size and precision of the tower.
        device: the device of the weights and of the tokens.

    Raises:
        DataError: as `describe`; the weights are missing, damaged, pickled, or of another architecture.
        ConfigError: as `describe`.

    Example:
        >>> tower = VisionTower(ClipConfig(model_name=BUNDLED), "cpu")
        >>> tower.encode(tower.preprocess([Image.new("RGB", (8, 8))])).shape
        torch.Size([1, 576, 64])
    """

    def __init__(self, clip: ClipConfig, device: torch.device | str) -> None:
        import transformers

        self.spec = describe(clip)
        self.device = torch.device(device)
        self.dtype: torch.dtype = resolve_dtype(clip.precision, self.device)
        located = locate(clip.model_name, clip.revision)
        family, vision = read_config(located.folder, self.spec.name)
        try:
            with quiet_transformers():
                told = {key: self.spec.preprocessing[key] for key in SIZES if key in self.spec.preprocessing}
                processor_class = getattr(transformers, family.processor_class)
                self.processor: Any = processor_class.from_pretrained(located.folder, **told)
                model_class = getattr(transformers, family.model_class)
                model, loaded = model_class.from_pretrained(
                    weights_folder(located),
                    config=_trimmed_config(model_class.config_class, located.folder, self.spec),
                    use_safetensors=True,
                    dtype=self.dtype,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                )
        except Exception as error:  # transformers and safetensors raise many kinds, including plain Exception
            raise DataError(
                f"model.clip.model_name: cannot load {self.spec.name!r} ({first_line(error)}); download or save it "
                "again"
            ) from error
        _check_weights(loaded, self.spec, family)
        setattr(model, family.last_norm, nn.Identity())
        self.num_special_tokens = family.num_special_tokens(vision)
        self.patch_size = int(model.config.patch_size)
        self._asks_for_positions = family.asks_for_positions
        self._other_size = self.spec.image_size != model.config.image_size
        self.model: Any = model.to(self.device).eval().requires_grad_(False)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """Turn RGB images into pixels [B, 3, H, W], float32 on the CPU."""
        return preprocess(self.processor, images)

    @torch.inference_mode()
    def encode(self, pixels: Tensor, *, interpolate_positions: bool = False) -> Tensor:
        """Turn pixels [B, 3, H, W] into patch tokens [B, N, C] alone, float32 on the tower's device.

        Args:
            interpolate_positions: for pixels of another size than `spec.image_size`; position embeddings are
                interpolated to their grid of patches, as transformers does it.
        """
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        interpolate = interpolate_positions or self._other_size
        request = {"interpolate_pos_encoding": interpolate} if self._asks_for_positions else {}
        found = self.model(pixels, **request).last_hidden_state
        tokens: Tensor = found[:, self.num_special_tokens :]
        return tokens.float()


def preprocess(processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """Preprocess as `VisionTower.preprocess` does, in worker processes without weights."""
    pixels: Tensor = processor([shorten(processor, image) for image in images], return_tensors="pt")["pixel_values"]
    return pixels


def _trimmed_config(config_class: Any, folder: Path, spec: EncoderSpec) -> Any:
    """Return the tower's config without the layers that are not computed, and without a pooling head."""
    config = config_class.from_pretrained(folder)
    config.num_hidden_layers = spec.layer
    config.vision_use_head = False  # a key of SigLIP; the others ignore it
    for key in ("image_size", "patch_size"):
        value = getattr(config, key)
        setattr(config, key, value[0] if isinstance(value, list | tuple) else value)  # SigLIP divides one by the other
    return config


def _check_weights(loaded: dict[str, Any], spec: EncoderSpec, family: Family) -> None:
    """Refuse a tower that would run with random or ignored weights, about which transformers only warns."""
    wrong = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
    unused = (family.last_norm, MASK_TOKEN)
    wrong = [key for key in wrong if not any(part in unused for part in key.split("."))]
    for key in sorted(loaded["unexpected_keys"]):
        layer = LAYER_KEY.match(key)
        dropped = layer is not None and spec.layer <= int(layer[1]) < spec.num_layers
        inside = layer is not None or EMBEDDINGS_KEY.match(key)
        if inside and not dropped and not key.endswith(("position_ids", MASK_TOKEN)):
            wrong.append(key)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(
            f"model.clip.model_name: the weights of {spec.name!r} do not fit {family.name}'s vision tower "
            f"({wrong[0]}{more}); check that config.json and the safetensors belong together"
        )

"""The frozen CLIP vision tower: images in, patch tokens out.

Shapes: B images, N = G * G patch tokens without the class token, C channels, H = W = image size.

`describe` reads JSON files only, so that a plan or a store check costs milliseconds; `VisionTower` loads weights.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.config import ClipConfig
from tokconv.errors import ConfigError, DataError
from tokconv.hub import BUNDLED, CONFIG_FILE, PROCESSOR_FILES, locate, quiet_transformers, read_json, weights_folder

__all__ = ["BUNDLED", "EncoderSpec", "VisionTower", "describe", "preprocess"]

DEFAULTS = {"hidden_size": 768, "num_hidden_layers": 12, "image_size": 224, "patch_size": 32}
"""What a CLIP vision config means when it leaves a key out."""


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder is, as far as its tokens are concerned."""

    name: str
    """As the user wrote it in `model.clip.model_name`."""
    revision: str
    """The hub's commit, or `sha256:...` over the files of a local directory."""
    layer: int
    """Index in `hidden_states`, from 0 (the embeddings) to num_layers: the number of layers that are computed."""
    token_grid: int
    dim: int
    num_layers: int
    image_size: int
    precision: str
    preprocessing: dict[str, Any]

    @property
    def num_tokens(self) -> int:
        return self.token_grid**2

    @property
    def slug(self) -> str:
        """The last part of the name, fit for a file name."""
        return re.sub(r"[^a-z0-9.]+", "-", re.split(r"[/\\:]", self.name.rstrip("/\\"))[-1].lower()).strip("-.")

    def identity(self) -> dict[str, Any]:
        """JSON; equal for two encoders exactly when their tokens may share a store.

        A local directory counts by its content, so that it may be moved and a store of it still be used.
        """
        return {
            "name": self.slug if self.revision.startswith("sha256:") else self.name,
            "revision": self.revision,
            "layer": self.layer,
            "token_grid": self.token_grid,
            "dim": self.dim,
            "image_size": self.image_size,
            "precision": self.precision,
            "preprocessing": self.preprocessing,
        }


def describe(clip: ClipConfig) -> EncoderSpec:
    """What the configured encoder is, without loading it.

    Raises:
        DataError: neither local nor reachable, damaged files, or not a CLIP vision tower.
        ConfigError: `model.clip.layer` is out of the tower's bounds.

    Example:
        >>> describe(ClipConfig(model_name=BUNDLED)).token_grid
        24
    """
    located = locate(clip.model_name, clip.revision)
    vision = {**DEFAULTS, **_vision_config(located.folder, clip.model_name)}
    image_size, patch_size = (_square(vision[key], key, clip.model_name) for key in ("image_size", "patch_size"))
    num_layers, dim = (_positive(vision[key], key, clip.model_name) for key in ("num_hidden_layers", "hidden_size"))
    preprocessing = _preprocessing(located.folder, clip.model_name)
    crop = _crop_size(preprocessing)
    if crop != image_size:
        raise DataError(
            f"model.clip.model_name: {clip.model_name!r} wants images of {image_size} pixels but its image processor "
            f"makes {crop}; set crop_size and size in {PROCESSOR_FILES[0]} to {image_size}"
        )
    return EncoderSpec(
        name=clip.model_name,
        revision=located.revision,
        layer=_hidden_layer(clip.layer, num_layers),
        token_grid=image_size // patch_size,
        dim=dim,
        num_layers=num_layers,
        image_size=image_size,
        precision=clip.precision,
        preprocessing=preprocessing,
    )


class VisionTower:
    """A frozen CLIP vision tower with the layers after `model.clip.layer` left out.

    Dropping them is bit-identical to reading `hidden_states[layer]` of the full tower, and skips their cost.

    Args:
        clip: name, layer and precision.
        device: where the weights live and the tokens come out.

    Raises:
        DataError: as `describe`, or weights that are missing, damaged, pickled, or of another architecture.
        ConfigError: as `describe`.

    Example:
        >>> tower = VisionTower(ClipConfig(model_name=BUNDLED), "cpu")
        >>> tower.encode(tower.preprocess([Image.new("RGB", (8, 8))])).shape
        torch.Size([1, 576, 64])
    """

    def __init__(self, clip: ClipConfig, device: torch.device | str) -> None:
        from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

        self.spec = describe(clip)
        self.device = torch.device(device)
        self.dtype = _dtype(clip.precision, self.device)
        located = locate(clip.model_name, clip.revision)
        try:
            with quiet_transformers():
                self.processor: Any = CLIPImageProcessor.from_pretrained(located.folder)
                config = CLIPVisionConfig.from_pretrained(located.folder)
                config.num_hidden_layers = self.spec.layer
                tower: Any = CLIPVisionModel  # its annotations know no output_loading_info
                model, loaded = tower.from_pretrained(
                    weights_folder(located),
                    config=config,
                    use_safetensors=True,
                    dtype=self.dtype,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                )
        except DataError:
            raise
        except Exception as error:  # transformers and safetensors raise many kinds, some of them plain Exception
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise DataError(
                f"model.clip.model_name: cannot load {clip.model_name!r} ({reason}); download or save it again"
            ) from error
        _check_weights(loaded, self.spec, clip.model_name)
        self.model: Any = model.to(self.device).eval().requires_grad_(False)

    def preprocess(self, images: Sequence[Image.Image]) -> Tensor:
        """RGB images to pixels [B, 3, H, W] float32 on the CPU."""
        return preprocess(self.processor, images)

    @torch.inference_mode()
    def encode(self, pixels: Tensor) -> Tensor:
        """Pixels [B, 3, H, W] to patch tokens [B, N, C], float32 on the tower's device, no class token."""
        pixels = pixels.to(self.device, self.dtype, non_blocking=True)
        tokens: Tensor = self.model(pixels).last_hidden_state[:, 1:]
        return tokens.float()


def preprocess(processor: Any, images: Sequence[Image.Image]) -> Tensor:
    """As `VisionTower.preprocess`, for worker processes that hold no weights."""
    pixels: Tensor = processor(list(images), return_tensors="pt")["pixel_values"]
    return pixels


def _check_weights(loaded: dict[str, Any], spec: EncoderSpec, name: str) -> None:
    """Refuse a tower that would run with random or ignored weights; transformers only warns."""
    wrong = sorted([*loaded["missing_keys"], *(key for key, *_ in loaded["mismatched_keys"])])
    for key in sorted(loaded["unexpected_keys"]):
        layer = re.match(r"(?:vision_model\.)?encoder\.layers\.(\d+)\.", key)
        dropped = layer is not None and spec.layer <= int(layer[1]) < spec.num_layers
        inside = layer is not None or re.match(r"(?:vision_model\.)?(embeddings|pre_layrnorm)\.", key)
        if inside and not dropped and not key.endswith("position_ids"):
            wrong.append(key)
    if wrong:
        more = f" and {len(wrong) - 1} more" if len(wrong) > 1 else ""
        raise DataError(
            f"model.clip.model_name: the weights of {name!r} do not fit CLIP's vision tower ({wrong[0]}{more}); "
            "check that config.json and the safetensors belong together"
        )


def _vision_config(folder: Path, name: str) -> dict[str, Any]:
    config = read_json(folder / CONFIG_FILE, name)
    kind = config.get("model_type")
    if kind not in ("clip", "clip_vision_model"):
        raise DataError(
            f"model.clip.model_name: {name!r} is of type {kind!r}; only CLIP vision towers "
            "(clip, clip_vision_model) can be encoded, SigLIP and others do not work yet"
        )
    vision = config.get("vision_config", {}) if kind == "clip" else config
    if not isinstance(vision, dict):
        raise DataError(f"model.clip.model_name: vision_config of {name!r} is not a JSON object; download it again")
    return vision


def _preprocessing(folder: Path, name: str) -> dict[str, Any]:
    for file in PROCESSOR_FILES:
        if (folder / file).exists():
            content = read_json(folder / file, name)
            nested = content.get("image_processor", content)
            return nested if isinstance(nested, dict) else content
    raise DataError(
        f"model.clip.model_name: {name!r} has no {PROCESSOR_FILES[0]}; save its CLIPImageProcessor beside the weights"
    )


def _crop_size(preprocessing: dict[str, Any]) -> Any:
    crop = preprocessing.get("crop_size", DEFAULTS["image_size"])
    return crop.get("height") if isinstance(crop, dict) else crop


def _positive(value: Any, key: str, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise DataError(f"model.clip.model_name: {key} of {name!r} is {value!r}; it must be a positive whole number")
    return value


def _square(value: Any, key: str, name: str) -> int:
    if isinstance(value, list) and len(set(value)) == 1:
        value = value[0]
    return _positive(value, key, name)


def _hidden_layer(layer: int, num_layers: int) -> int:
    if not -num_layers - 1 <= layer <= num_layers:
        raise ConfigError(
            f"model.clip.layer: got {layer}; this tower has {num_layers} layers, so it must be from "
            f"{-num_layers - 1} to {num_layers} (0 is the embeddings, -1 the last layer)"
        )
    return layer if layer >= 0 else num_layers + 1 + layer


def _dtype(precision: str, device: torch.device) -> torch.dtype:
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]

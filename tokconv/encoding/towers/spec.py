"""The description of a vision tower, read from its JSON files alone: a plan or a store check takes milliseconds."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tokconv.config.tree import ClipConfig
from tokconv.encoding.towers.families import FAMILIES, NAFLEX_TYPES, Family, layer_from_start
from tokconv.encoding.towers.hub import CONFIG_FILE, PROCESSOR_FILES, locate, read_json
from tokconv.encoding.towers.sizes import choose_image_size, made_size, resized
from tokconv.errors import ConfigError, DataError

NUM_CHANNELS = 3


def slug_of(name: str) -> str:
    """Return the last part of the name or path of a tower, suitable for a file name."""
    return re.sub(r"[^a-z0-9.]+", "-", re.split(r"[/\\:]", name.rstrip("/\\"))[-1].lower()).strip("-.")


@dataclass(frozen=True)
class EncoderSpec:
    """Everything about an encoder that its tokens depend on."""

    name: str
    """`model.clip.model_name`, with a short name replaced by its hub name."""
    revision: str
    """The hub's commit, or `sha256:...` over the files of a local directory."""
    layer: int
    """Index in `hidden_states`, from 0 (the embeddings) to num_layers; also the number of layers that are computed."""
    token_grid: int
    dim: int
    num_layers: int
    image_size: int
    precision: str
    preprocessing: dict[str, Any]

    @property
    def slug(self) -> str:
        """The last part of the name, suitable for a file name."""
        return slug_of(self.name)

    def identity(self) -> dict[str, Any]:
        """Return JSON that is equal for two encoders exactly if their tokens may share a store.

        A local directory is identified by its content, so that its stores stay valid if it is moved.
        """
        identity = asdict(self)
        del identity["num_layers"]  # no token depends on the layers after `layer`
        if self.revision.startswith("sha256:"):
            identity["name"] = self.slug
        return identity


def describe(clip: ClipConfig) -> EncoderSpec:
    """Describe the configured encoder without loading it.

    Raises:
        DataError: the encoder is neither local nor reachable, its files are damaged, or it is not a supported tower.
        ConfigError: the tower does not have the layer `model.clip.layer`, or cannot see `model.clip.image_size`.

    Example:
        >>> describe(ClipConfig(model_name="bundled:digits-tower")).token_grid
        24
    """
    located = locate(clip.model_name, clip.revision)
    name = located.repo or clip.model_name
    family, stated = read_config(located.folder, name)
    vision = {**family.defaults, **stated}
    own_size, patch_size = (_square(vision[key], key, name) for key in ("image_size", "patch_size"))
    num_layers, dim = (_positive(vision[key], key, name) for key in ("num_hidden_layers", "hidden_size"))
    if vision.get("num_channels", NUM_CHANNELS) != NUM_CHANNELS:
        raise DataError(
            f"model.clip.model_name: {name!r} expects images of {vision['num_channels']!r} channels; use an RGB tower"
        )
    if patch_size > own_size:
        raise DataError(f"model.clip.model_name: patch_size of {name!r} is larger than its image_size; correct them")
    image_size = choose_image_size(clip.image_size, own_size, patch_size, family, name)
    preprocessing = _preprocessing(located.folder, name, family)
    if clip.image_size is not None or family.default_grid is not None:
        preprocessing = resized(preprocessing, family, image_size)
    if (made := made_size(preprocessing, family)) != (image_size, image_size):
        what = "does not resize images, or keeps their shape" if made is None else f"makes {made[0]} x {made[1]}"
        raise DataError(
            f"model.clip.model_name: {name!r} expects images of {image_size} x {image_size} pixels but its image "
            f"processor {what}; set {'crop_size and size' if family.crops else 'size'} in {PROCESSOR_FILES[0]} "
            f"to {image_size}"
        )
    return EncoderSpec(
        name=name,
        revision=located.revision,
        layer=_hidden_layer(clip.layer, num_layers),
        token_grid=image_size // patch_size,
        dim=dim,
        num_layers=num_layers,
        image_size=image_size,
        precision=clip.precision,
        preprocessing=preprocessing,
    )


def read_config(folder: Path, name: str) -> tuple[Family, dict[str, Any]]:
    """Return the family of a tower and its vision config. Raises DataError if the tower is not supported."""
    config = read_json(folder / CONFIG_FILE, name)
    kind = config.get("model_type")
    if kind in NAFLEX_TYPES:
        raise DataError(
            f"model.clip.model_name: {name!r} is a NaFlex SigLIP 2 ({kind}), whose number of tokens follows the shape "
            "of each image; use one with a fixed resolution, such as google/siglip2-base-patch16-224"
        )
    if not isinstance(kind, str) or kind not in FAMILIES:
        raise DataError(
            f"model.clip.model_name: {name!r} is of type {kind!r}; towers of these types encode images: "
            f"{', '.join(FAMILIES)}. For any other tower, encode the images yourself and give the tokens with "
            "data=features data.root=FILE, or with tokconv compress --tokens FILE"
        )
    family = FAMILIES[kind]
    vision = config.get("vision_config", {}) if kind == family.whole_type else config
    if not isinstance(vision, dict):
        raise DataError(f"model.clip.model_name: vision_config of {name!r} is not a JSON object; download it again")
    return family, vision


def _preprocessing(folder: Path, name: str, family: Family) -> dict[str, Any]:
    for file in PROCESSOR_FILES:
        if (folder / file).exists():
            content = read_json(folder / file, name)
            nested = content.get("image_processor", content)
            return nested if isinstance(nested, dict) else content
    raise DataError(
        f"model.clip.model_name: {name!r} has no {PROCESSOR_FILES[0]}; save its {family.processor_class} next to "
        "the weights"
    )


def _positive(value: Any, key: str, name: str) -> int:
    if not isinstance(value, int) or value < 1:
        raise DataError(f"model.clip.model_name: {key} of {name!r} is {value!r}; it must be a positive whole number")
    return value


def _square(value: Any, key: str, name: str) -> int:
    if isinstance(value, list):
        if len(value) != 2 or value[0] != value[1]:
            raise DataError(f"model.clip.model_name: {key} of {name!r} is {value!r}; only square towers are supported")
        value = value[0]
    return _positive(value, key, name)


def _hidden_layer(layer: int, num_layers: int) -> int:
    if not -num_layers - 1 <= layer <= num_layers:
        raise ConfigError(
            f"model.clip.layer: got {layer}; this tower has {num_layers} layers, so it must be from "
            f"{-num_layers - 1} to {num_layers} (0 is the embeddings, -1 the last layer)"
        )
    return layer_from_start(layer, num_layers)

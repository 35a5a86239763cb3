"""Whether the tokens of a store are those that a vision-language model's projector reads."""

from __future__ import annotations

import torch
from PIL import Image

from tokconv.config.tree import Config
from tokconv.encoding.stored_images import open_stored
from tokconv.encoding.towers.families import layer_from_start
from tokconv.encoding.towers.spec import slug_of
from tokconv.errors import ConfigError, DataError
from tokconv.exports.answers.model import AnsweringModel
from tokconv.store.reader import TokenStore

ADVICE = "encode with the tower of this model (model.clip.model_name, model.clip.layer, model.clip.image_size)"
TOLERANCE = 0.1
"""Largest error of the model's own tokens, as a share of their spread, at which they are those of the store: int8 and
bfloat16 make up to 0.02, another resizing of the image more than 0.2."""


def check_store(store: TokenStore, model: AnsweringModel) -> None:
    """Raise ConfigError unless a store's tokens can be those that the projector reads, by what is known about both.

    These are width, grid, hidden layer, image size, and whether the model passes on patch tokens alone.
    """
    encoder, vision = store.settings.encoder, model.model.config.vision_config
    num_layers = vision.num_hidden_layers
    layer, read = encoder.get("layer"), layer_from_start(model.layer, num_layers)
    for what, found, wanted in (
        ("width", store.dim, model.dim),
        ("token grid", store.token_grid, model.token_grid),
        ("hidden layer", None if layer is None else layer_from_start(layer, num_layers), read),
        # Ready-made tokens do not tell at which size their tower saw the images.
        ("image size", encoder.get("image_size", vision.image_size), vision.image_size),
    ):
        if found != wanted:
            raise ConfigError(f"{store.path}: its {what} is {found}, that of the model's tower is {wanted}; {ADVICE}")
    model.check_patch_tokens()


def check_tower(store: TokenStore, model: AnsweringModel, image: int, config: Config | None = None) -> None:
    """Raise ConfigError unless the model's own tower makes the tokens of a store.

    If an image of the store can be opened, the model's tokens of it decide. Otherwise the tower's name does, as far as
    the model's config records one.

    Args:
        image: index in the store of the image that is compared.
        config: names the images; None takes those that were noted when the store was encoded.

    Raises:
        ConfigError: it does not; how far the tokens are apart, or which names differ.
    """
    index = torch.tensor([image])
    try:
        _, source = open_stored(store, index, config)
        opened = source.load(0)
    except (DataError, OSError):
        opened = None
    if not isinstance(opened, Image.Image):
        _check_name(store, model)
        return
    found, wanted = (
        store.standardise(tokens.cpu()) for tokens in (model.tower_tokens([opened]), store.tokens(index).float())
    )
    apart = float((found - wanted).square().mean().sqrt() / wanted.std().clamp(min=1e-6))
    if not apart <= TOLERANCE:
        raise ConfigError(
            f"{store.path}: the tokens of {store.keys[image]} are not those that the model's tower makes of it (they "
            f"are {apart:.0%} of their spread apart); {ADVICE}"
        )


def _check_name(store: TokenStore, model: AnsweringModel) -> None:
    recorded, name = getattr(model.model.config.vision_config, "_name_or_path", ""), store.settings.encoder.get("name")
    given = store.settings.encoder.get("preprocessing") is None
    if recorded and name and not given and slug_of(recorded) != slug_of(str(name)):
        raise ConfigError(
            f"{store.path}: holds tokens of {name}, the model's tower is {recorded}, and no image is there to compare "
            f"the two; {ADVICE}"
        )

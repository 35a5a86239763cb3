"""The images of a config: opening its source, taking a subset of it, and splitting off the held-out images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.config.sources import IMAGES, SOURCES
from tokconv.config.tree import Config, DataConfig
from tokconv.encoding.sources.base import ImageItem, ImageSource
from tokconv.encoding.sources.feature_files import Asked
from tokconv.encoding.sources.features import FeatureSource, FeatureSpec
from tokconv.encoding.sources.registry import OPENERS
from tokconv.encoding.sources.views import ViewsSource
from tokconv.encoding.towers.spec import EncoderSpec, describe
from tokconv.errors import DataError
from tokconv.system.files import local_path

__all__ = ["ImageItem", "ImageSource", "SubsetSource", "assign_split", "describe_tokens", "open_source"]

# Not the seed of the digits' split: the same permutation would choose training digits only.
SUBSET_SEED = 1


def open_source(config: DataConfig) -> ImageSource:
    """Open the configured source; a `data.subset` larger than the source means all of it.

    With `data.views` above 1, its items are the views of the subset's images, and declare the split.

    Raises:
        ConfigError: there is no source of this name.
        DataError: `data.root` is missing, unreachable, holds no images, or has another layout.
        MissingExtraError: the package that the source reads from is not installed.

    Example:
        >>> len(open_source(DataConfig(source="digits", subset=100)).items)
        100
    """
    source = OPENERS[config.source](config)
    if config.subset is not None and config.subset < len(source.items):
        source = SubsetSource(source, config.subset)
    if config.views > 1:
        return ViewsSource(source, assign_split(source.items, config.val_fraction), config.views)
    return source


def describe_tokens(config: Config) -> EncoderSpec | FeatureSpec:
    """Describe the tokens of a config from the encoder's files, or ready-made tokens from theirs.

    Raises:
        DataError: `data.root` names a folder that is not there, or as `describe` and `FeatureSource`.
        ConfigError: as `describe`, or as `FeatureSource`.

    Example:
        >>> describe_tokens(Config(model=ModelConfig(clip=ClipConfig(model_name="bundled:digits-tower")))).token_grid
        24
    """
    if config.data.source == FeatureSource.name:
        source = FeatureSource(config.data.root or "", Asked(config.data.extra_tokens))
        return source.spec(config.model.clip)
    # A mistake in the folder is told at once, before a hub is asked for the tower.
    check_root(config.data)
    return describe(config.model.clip)


def check_root(data: DataConfig) -> None:
    """Raise DataError if `data.root` names a folder of images that is not there."""
    root = data.root or ""
    if SOURCES[data.source] == IMAGES and not local_path(root).is_dir():
        raise DataError(f"data.root: there is no folder {root!r}; give the folder of the images")


def assign_split(items: Sequence[ImageItem], val_fraction: float) -> list[str]:
    """Return train or val for each item: the split that it declares, else one drawn by a hash of its key.

    With a hash, no image changes sides if others are added. Each side gets at least one image.

    Raises:
        DataError: there are fewer than two images; or there are several views of the training images, and no held-out
            image, as none of them could be read.
    """
    if len(items) < 2:
        raise DataError(f"data: {len(items)} readable images; at least 2 are needed, one to train on, one to hold out")
    draws = [_draw(item) for item in items]
    splits = [own_split(item, val_fraction) for item in items]
    if "val" not in splits and any(item.view for item in items):
        # Of any image left, some views are in the training split, which must not have views of held-out images.
        raise DataError("data.views: none of the held-out images can be read; repair one, or use data.views=1")
    if "val" not in splits:
        splits[draws.index(min(draws))] = "val"
    elif "train" not in splits:
        splits[draws.index(max(draws))] = "train"
    return splits


def own_split(item: ImageItem, val_fraction: float) -> str:
    """Return train or val: the split that an image declares, else the one drawn for it alone."""
    return item.split or ("val" if _draw(item) < val_fraction else "train")


def _draw(item: ImageItem) -> float:
    """Return a number in [0, 1), uniform over keys."""
    found = hashlib.sha256(item.key.encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(found[:8]) / 2**64


class SubsetSource:
    """A fixed choice of `count` images of a source, in the source's order.

    If the source declares splits, at least one image of each is kept.
    """

    def __init__(self, source: ImageSource, count: int) -> None:
        self.source = source
        self.name, self.class_names, self.notes = source.name, source.class_names, source.notes
        generator = torch.Generator().manual_seed(SUBSET_SEED)
        order: list[int] = torch.randperm(len(source.items), generator=generator).tolist()
        chosen = order[:count]
        kept = {source.items[index].split for index in chosen}
        spare = next((i for i in order[count:] if source.items[i].split not in kept), None)
        if spare is not None:
            chosen[-1] = spare
        self._indices = sorted(chosen)
        self.items = tuple(source.items[index] for index in self._indices)

    def load(self, index: int) -> Image.Image | Tensor:
        return self.source.load(self._indices[index])

    def identity(self) -> dict[str, Any]:
        return {**self.source.identity(), "subset": len(self.items)}

    def probed_identity(self) -> dict[str, Any]:
        return {**self.source.probed_identity(), "subset": len(self.items)}

    def stats(self, indices: Sequence[int]) -> Tensor:
        return self.source.stats([self._indices[index] for index in indices])

    def content(self, index: int) -> bytes:
        return self.source.content(self._indices[index])

"""The tokens a sweep will train on, as far as they can be known before they are encoded.

An existing store is measured; a tower and images on this machine are counted. For published towers and data sets the
published sizes are assumed, without asking the network, and the plan lists the assumption.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from tokconv.config.tree import Config, DataConfig
from tokconv.encoding.existing import planned
from tokconv.encoding.images import assign_split, describe_tokens, open_source
from tokconv.encoding.job import STORES, open_job
from tokconv.encoding.towers.families import PUBLISHED_SHAPES, SHORT_NAMES
from tokconv.encoding.towers.sizes import choose_image_size
from tokconv.errors import DataError
from tokconv.store.format import INDEX, default_shard_size, image_bytes
from tokconv.store.reader import TokenStore
from tokconv.system.files import local_path
from tokconv.training.networks import TokenShape

PUBLISHED_SIZES = {"imagenet": (1_281_167, 50_000), "coco": (118_287, 5_000)}
"""Training and validation images of ImageNet-1k (Russakovsky et al. 2015) and COCO 2017."""


@dataclass(frozen=True, kw_only=True)
class PlannedTokens:
    """An existing token store, or the one that would be encoded."""

    shape: TokenShape
    train_images: int
    val_images: int
    bytes: int
    shards: int
    store: TokenStore | None
    where: str
    assumed: tuple[str, ...]
    """Sentences about what was not found on this machine."""

    @property
    def images(self) -> int:
        return self.train_images + self.val_images

    @property
    def image_bytes(self) -> float:
        return self.bytes / self.images


def plan_tokens(config: Config, stores: str | Path = STORES) -> PlannedTokens:
    """Return size and shape of the token store of a config.

    Args:
        stores: the directory or URL of the stores that `data.store` does not name.

    Raises:
        DataError: the tower or the data are neither published nor on this machine.
    """
    assumed: list[str] = []
    grid, dim = _tower(config, assumed)
    shape = TokenShape(grid, dim, torch.zeros(dim))
    store = _store(config, stores, published=bool(assumed))
    if store is not None:
        train, val, where = len(store.train_indices), len(store.val_indices), f"{store.path}, encoded already"
    else:
        train, val = _images(config.data, assumed)
        where = "not encoded yet"
    each = image_bytes(grid, dim, config.data.dtype)
    return PlannedTokens(
        shape=shape,
        train_images=train,
        val_images=val,
        bytes=(train + val) * each,
        shards=-(-(train + val) // default_shard_size(grid, dim, config.data.dtype)),
        store=store,
        where=where,
        assumed=tuple(assumed),
    )


def _tower(config: Config, assumed: list[str]) -> tuple[int, int]:
    """Return the token grid and the number of channels."""
    clip = config.model.clip
    name = SHORT_NAMES.get(clip.model_name, clip.model_name)
    if name not in PUBLISHED_SHAPES or config.data.source == "features":
        spec = describe_tokens(config)
        return spec.token_grid, spec.dim
    shape = PUBLISHED_SHAPES[name]
    image_size = choose_image_size(clip.image_size, shape.image_size, shape.patch_size, shape.family, name)
    assumed.append(f"{name} has its published shape; the tower itself was not looked for")
    return image_size // shape.patch_size, shape.dim


def _store(config: Config, stores: str | Path, *, published: bool) -> TokenStore | None:
    if published:
        # Only the tower's own files tell which store its config leads to; a store that is named can be opened.
        named = local_path(config.data.store or "")
        return TokenStore.open(named) if config.data.store and (named / INDEX).is_file() else None
    try:
        job, complete = planned(open_job(config, stores))
    except DataError:
        if config.data.source not in PUBLISHED_SIZES:
            raise
        return None
    return TokenStore.open(job.path) if complete and (job.path / INDEX).is_file() else None


def _images(data: DataConfig, assumed: list[str]) -> tuple[int, int]:
    """Return the numbers of training and held-out images; each view of a training image counts."""
    try:
        splits = assign_split(open_source(data).items, data.val_fraction)
    except DataError:
        if data.source not in PUBLISHED_SIZES:
            raise
    else:
        return splits.count("train"), splits.count("val")
    train, val = PUBLISHED_SIZES[data.source]
    assumed.append(f"{data.source} has its published {train:,} + {val:,} images; data.root is not on this machine")
    if data.subset is not None and data.subset < train + val:
        # A subset draws from both splits in proportion.
        val = max(1, round(data.subset * val / (train + val)))
        train = data.subset - val
    return train * data.views, val

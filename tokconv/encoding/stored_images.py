"""The images that a store was made from: where they are, and opening them again."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from PIL import Image
from torch import Tensor

from tokconv.config.keys import to_dict
from tokconv.config.overrides import from_dict
from tokconv.config.tree import Config
from tokconv.encoding.changes import find_changes
from tokconv.encoding.images import describe_tokens, open_source
from tokconv.encoding.job import EncodeJob
from tokconv.encoding.sources.base import ImageItem, ImageSource
from tokconv.encoding.sources.features import FeatureSpec
from tokconv.encoding.towers.families import SHORT_NAMES
from tokconv.encoding.towers.spec import EncoderSpec
from tokconv.errors import DataError
from tokconv.store.format import digest, read_json
from tokconv.store.reader import TokenStore
from tokconv.system.files import local_path, write_json

RECORD = "encoded_from.json"
"""In the derived folder: the part of the config that names images and tower, so that a store alone leads to them."""


def remember_config(store: TokenStore, config: Config) -> None:
    """Note beside a store which images and tower it was made from; a folder without write access is left alone."""
    tree = to_dict(config)
    root, tower = config.data.root, config.model.clip.model_name
    # Who reads the note may be elsewhere. A short name means the hub, also where a folder has it.
    if root is not None and local_path(root).exists():
        tree["data"]["root"] = str(local_path(root).absolute())
    if tower not in SHORT_NAMES and local_path(tower).is_dir():
        tree["model"]["clip"]["model_name"] = str(local_path(tower).absolute())
    noted = {"data": tree["data"], "model": {"clip": tree["model"]["clip"]}}
    with suppress(OSError):
        store.derived_dir.mkdir(parents=True, exist_ok=True)
        write_json(store.derived_dir / RECORD, noted)


def remembered(store: TokenStore) -> Config:
    """Return the config that `remember_config` noted. Raises DataError if it noted none."""
    path = store.derived_dir / RECORD
    if not path.is_file():
        raise DataError(f"{store.path} does not say which images it was made from; run the same tokconv encode again")
    return from_dict(read_json(path))


def open_stored(store: TokenStore, images: Tensor, config: Config | None = None) -> tuple[EncoderSpec, StoredImages]:
    """Return the tower that a config names and some images of a store as a source.

    Args:
        images: [n] int64, indices in the store.
        config: names images and tower; None takes what `remember_config` noted.

    Raises:
        DataError: the store was made from ready-made tokens, or its images are no longer there as they were.
    """
    config = config or remembered(store)
    spec = describe_tokens(config)
    if isinstance(spec, FeatureSpec):
        raise DataError(f"{store.path} was made from ready-made tokens, not from images")
    source = open_source(config.data)
    if not _same_images(source, spec, store):
        raise DataError(f"the images that {store.path} was made from are no longer there as they were")
    return spec, StoredImages(source, store, images)


def _same_images(source: ImageSource, spec: EncoderSpec, store: TokenStore) -> bool:
    """Return whether a source has the images of a store; earlier versions of stores hold another identity."""
    known = digest(store.settings.source)
    if digest(source.identity()) != known and digest(source.probed_identity()) != known:
        return False
    job = EncodeJob(spec, source, store.settings, store.path)
    return not find_changes(job, dict(enumerate(store.shard_paths())), [image.item for image in store.skipped]).text


class StoredImages:
    """Images of a store as a source, whose keys are their indices in the store."""

    name = "stored"
    class_names: tuple[str, ...] = ()

    def __init__(self, source: ImageSource, store: TokenStore, images: Tensor) -> None:
        skipped = {image.item for image in store.skipped}
        stored = [item for item in range(store.settings.num_items) if item not in skipped]
        self._source, self._chosen = source, [stored[image] for image in images.tolist()]
        self.notes = source.notes
        self.items: Sequence[ImageItem] = tuple(ImageItem(str(image)) for image in images.tolist())

    def load(self, index: int) -> Image.Image | Tensor:
        return self._source.load(self._chosen[index])

    def identity(self) -> dict[str, Any]:
        return self._source.identity()

    def probed_identity(self) -> dict[str, Any]:
        return self._source.probed_identity()

    def stats(self, indices: Sequence[int]) -> Tensor:
        return self._source.stats([self._chosen[index] for index in indices])

    def content(self, index: int) -> bytes:
        return self._source.content(self._chosen[index])

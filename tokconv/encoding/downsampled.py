"""Tokens of downsampled images, for the baseline of that name: the frozen tower on smaller images, once per store.

An image takes the way of the store's own images up to the pixels of the tower. These are resized to k patches a side
(bicubic, antialiased), and the tower runs on them with positions interpolated as transformers does it. The result is as
many tokens as a k x k compressor returns, at a fraction of the encoder's cost.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from tokconv.config.overrides import from_dict
from tokconv.config.tree import Config, to_dict
from tokconv.encoding.changes import find_changes
from tokconv.encoding.images import describe_tokens, open_source
from tokconv.encoding.job import EncodeJob
from tokconv.encoding.shards import ShardEncoder
from tokconv.encoding.sources.base import ImageItem, ImageSource
from tokconv.encoding.sources.features import FeatureSpec
from tokconv.encoding.towers.spec import EncoderSpec
from tokconv.errors import DataError, TokconvError, first_line
from tokconv.store.downsampled import DownsampledTokens, downsampled_dir, downsampled_settings
from tokconv.store.format import digest, read_json
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.system.devices import resolve_device
from tokconv.system.files import local_path, write_json

RECORD = "encoded_from.json"
"""In the derived folder: the part of the config that names images and tower, so that a store alone leads to them."""


def remember_config(store: TokenStore, config: Config) -> None:
    """Note beside a store which images and tower it was made from; a folder without write access is left alone."""
    tree = to_dict(config)
    root = config.data.root
    if root is not None and local_path(root).exists():
        tree["data"]["root"] = str(local_path(root).absolute())
    noted = {"data": tree["data"], "model": {"clip": tree["model"]["clip"]}}
    with suppress(OSError):
        store.derived_dir.mkdir(parents=True, exist_ok=True)
        write_json(store.derived_dir / RECORD, noted)


def add_downsampled(
    store: TokenStore,
    output_grid: int,
    images: Tensor,
    *,
    config: Config | None = None,
    device: str | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> str:
    """Make sure that the downsampled images of a store are encoded at a grid.

    Args:
        images: [n] int64, ascending, the images that are needed.
        config: names images and tower; None takes what `remember_config` noted.
        device: where the tower runs; None takes CUDA if there is one.
        progress: called with the number of encoded images and of all.

    Returns:
        "" if they are there, else one sentence that says why there are none.
    """
    try:
        if DownsampledTokens.find(store, output_grid) is None:
            _encode(store, output_grid, images, config or _remembered(store), device, progress)
    except (TokconvError, OSError) as error:
        return first_line(error)
    return ""


def _remembered(store: TokenStore) -> Config:
    path = store.derived_dir / RECORD
    if not path.is_file():
        raise DataError(f"{store.path} does not say which images it was made from; run the same tokconv encode again")
    return from_dict(read_json(path))


def _encode(
    store: TokenStore,
    output_grid: int,
    images: Tensor,
    config: Config,
    device: str | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    spec, done = describe_tokens(config), 0
    if isinstance(spec, FeatureSpec):
        raise DataError(f"{store.path} was made from ready-made tokens, not from images")
    source = open_source(config.data)
    if not _same_images(source, spec, store):
        raise DataError(f"the images that {store.path} was made from are no longer there as they were")
    if digest(spec.identity()) != digest(store.settings.encoder):
        raise DataError(f"{spec.name} is no longer the tower that {store.path} was made with")
    path, settings = downsampled_dir(store, output_grid), downsampled_settings(store, output_grid, images)

    def count(encoded: int, skipped: int) -> None:
        nonlocal done
        if skipped:
            raise DataError(f"{skipped} images of {store.path} can no longer be read")
        done += encoded
        if progress is not None:
            progress(done, len(images))

    with StoreWriter(path, settings) as writer:
        if writer.complete:
            return
        written = writer.headers()
        done = sum(header.count for header in written.values())
        missing = [number for number in range(settings.num_shards) if number not in written]
        if missing:
            job = EncodeJob(spec, _StoredImages(source, store, images), settings, path)
            _SmallImageEncoder(config, job, resolve_device(device)).write(writer, missing, count)
        is_val = torch.isin(images, store.val_indices).tolist()
        splits = ["val" if held_out else "train" for held_out in is_val]
        writer.finish([str(image) for image in images.tolist()], splits)


def _same_images(source: ImageSource, spec: EncoderSpec, store: TokenStore) -> bool:
    """Return whether a source has the images of a store; earlier versions of stores hold another identity."""
    known = digest(store.settings.source)
    if digest(source.identity()) != known and digest(source.probed_identity()) != known:
        return False
    job = EncodeJob(spec, source, store.settings, store.path)
    return not find_changes(job, dict(enumerate(store.shard_paths())), [image.item for image in store.skipped]).text


class _SmallImageEncoder(ShardEncoder):
    """Encodes images at k patches a side, k the grid of the job."""

    def encode(self, loaded: Tensor) -> Tensor:
        assert self.tower is not None
        side = self.job.settings.token_grid * self.tower.patch_size
        pixels = loaded.to(self.tower.device)
        small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        return self.tower.encode(small, interpolate_positions=True)


class _StoredImages:
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

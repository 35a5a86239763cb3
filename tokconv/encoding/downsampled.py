"""Tokens of downsampled images, for the baseline of that name: the frozen tower on smaller images, once per store.

An image takes the way of the store's own images up to the pixels of the tower. These are resized to k patches a side
(bicubic, antialiased), and the tower runs on them with positions interpolated as transformers does it. The result is as
many tokens as a k x k compressor returns, at a fraction of the encoder's cost.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from tokconv.config.tree import Config
from tokconv.encoding.job import EncodeJob
from tokconv.encoding.shards import ShardEncoder
from tokconv.encoding.stored_images import open_stored, remembered
from tokconv.errors import DataError, TokconvError, first_line
from tokconv.store.downsampled import DownsampledTokens, downsampled_dir, downsampled_settings
from tokconv.store.format import digest
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.system.devices import resolve_device


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
            _encode(store, output_grid, images, config, device, progress)
    except (TokconvError, OSError) as error:
        return first_line(error)
    return ""


def _encode(
    store: TokenStore,
    output_grid: int,
    images: Tensor,
    config: Config | None,
    device: str | None,
    progress: Callable[[int, int], None] | None,
) -> None:
    (spec, source), done = open_stored(store, images, config), 0
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
            job = EncodeJob(spec, source, settings, path)
            _SmallImageEncoder(config or remembered(store), job, resolve_device(device)).write(writer, missing, count)
        is_val = torch.isin(images, store.val_indices).tolist()
        splits = ["val" if held_out else "train" for held_out in is_val]
        writer.finish([str(image) for image in images.tolist()], splits)


class _SmallImageEncoder(ShardEncoder):
    """Encodes images at k patches a side, k the grid of the job."""

    def encode(self, loaded: Tensor) -> Tensor:
        assert self.tower is not None
        side = self.job.settings.token_grid * self.tower.patch_size
        pixels = loaded.to(self.tower.device)
        small = F.interpolate(pixels, size=(side, side), mode="bicubic", antialias=True)
        return self.tower.encode(small, interpolate_positions=True)

"""Small token stores for tests: real files, no encoder."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from tokconv.store.format import StoreSettings, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter


def write_store(
    path: Path, *, token_grid: int = 6, dim: int = 8, num_images: int = 40, num_classes: int = 2, seed: int = 0
) -> TokenStore:
    """Write tokens that vary smoothly over the grid around a large common mean, some channels more than others, as real
    tokens do; every fourth image is held out.

    The class is the sign of the first channel's average, so that a linear probe can find it.
    """
    generator = torch.Generator().manual_seed(seed)
    strength = 0.7 ** torch.arange(dim)
    coarse = strength.view(1, -1, 1, 1) * torch.randn(num_images, dim, 3, 3, generator=generator)
    smooth = F.interpolate(coarse, size=token_grid, mode="bilinear", align_corners=True)
    tokens = smooth.flatten(2).transpose(1, 2) + 0.02 * torch.randn(num_images, token_grid**2, dim, generator=generator)
    labels = (tokens[..., 0].mean(1) > 0).long().clamp(max=max(0, num_classes - 1))
    settings = StoreSettings(
        encoder={"name": "synthetic", "layer": 1},
        source={"name": "synthetic", "seed": seed},
        num_items=num_images,
        token_grid=token_grid,
        dim=dim,
        class_names=tuple(str(number) for number in range(num_classes)),
        shard_size=16,
    )
    with StoreWriter(path, settings) as writer:
        for number in range(settings.num_shards):
            items = list(settings.shard_items(number))
            own = labels[items].tolist() if num_classes else None
            writer.write_shard(number, pack(tokens[items] + 5, settings.dtype), items, own)
        writer.finish(
            [f"image-{i:03d}" for i in range(num_images)],
            ["val" if i % 4 == 0 else "train" for i in range(num_images)],
        )
    return TokenStore.open(path)


def write_tokens(path: Path, tokens_BNC: torch.Tensor) -> TokenStore:
    """Write given tokens as training images without labels, float16."""
    count, num_tokens, dim = tokens_BNC.shape
    settings = StoreSettings(
        encoder={"name": "synthetic", "layer": 1},
        source={"name": "given"},
        num_items=count,
        token_grid=round(num_tokens**0.5),
        dim=dim,
        class_names=(),
        shard_size=count,
    )
    with StoreWriter(path, settings) as writer:
        writer.write_shard(0, pack(tokens_BNC, settings.dtype), range(count), None)
        writer.finish([f"image-{i:03d}" for i in range(count)], ["train"] * count)
    return TokenStore.open(path)

"""The real side of the evaluation protocol: what compressed and reconstructed tokens are compared with.

Everything here depends on the store, at most also on the output grid, never on a compressor, so it is computed once.
Beside every figure of a compressor stands the same figure of real tokens against real ones.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.evaluation import protocol
from tokconv.evaluation.metrics.features import ImageFeatures
from tokconv.evaluation.metrics.similarity import cka, nearest, neighbour_overlap
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path

BATCH = 16
"""Images in memory at a time; no figure depends on it. Of 8 to 64 the fastest on a CPU, whose caches hold as many."""


def held_out(store: TokenStore) -> Tensor:
    """The images that are evaluated, ascending: at most 2,048 of the validation split."""
    generator = torch.Generator().manual_seed(protocol.SEED)
    order = torch.randperm(len(store.val_indices), generator=generator)[: protocol.MAX_IMAGES]
    return store.val_indices[order].sort().values


class Draw:
    """Some rows out of all those of the held-out images, kept while batches pass by: never all of them in memory.

    Args:
        rows: [m] int64, which rows, counted over all images one after another; in any order.
        dim: C.
    """

    def __init__(self, rows: Tensor, dim: int) -> None:
        self._rows, self._passed = rows, 0
        self.kept = torch.empty(len(rows), dim)
        """[m, C], in the order of `rows`, when all batches have passed."""

    def take(self, batch_BRC: Tensor) -> None:
        """The rows of the next images, R of each."""
        count = batch_BRC.shape[0] * batch_BRC.shape[1]
        mine = (self._rows >= self._passed) & (self._rows < self._passed + count)
        wanted = (self._rows[mine] - self._passed).to(batch_BRC.device)
        self.kept[mine] = batch_BRC.flatten(0, 1)[wanted].float().cpu()
        self._passed += count


@dataclass(frozen=True)
class Sample:
    """Standardised real tokens for the figures that compare token by token, at one output grid.

    reference: [n, C] from anywhere in the images, as many as compressed tokens are compared.
    one_per_window: [n, C], as an ideal compressor that answers with real tokens would give.
    mmd_reference: [m, C] from anywhere in the images, the same at every grid.
    compared: [n] int64, which of the compressed tokens are compared, in random order.
    cells: [images, K] int64, the token of each window that `one_per_window` was drawn from.
    """

    reference: Tensor
    one_per_window: Tensor
    mmd_reference: Tensor
    compared: Tensor
    cells: Tensor


def draw_sample(store: TokenStore, images: Tensor, windows: Windows) -> Sample:
    """Draw by the protocol's seed, in one pass over the images."""
    generator = torch.Generator().manual_seed(protocol.SEED)
    tokens_each, num_cells = store.num_tokens, windows.num_cells
    mmd_rows = torch.randperm(len(images) * tokens_each, generator=generator)[: protocol.MAX_MMD_TOKENS]
    places = torch.randint(tokens_each, (len(images), num_cells), generator=generator)
    numbers = torch.arange(tokens_each).expand(len(images), -1)[..., None]
    cells = windows.sample(numbers, generator)[..., 0]
    compared = torch.randperm(places.numel(), generator=generator)[: protocol.MAX_TOKENS]
    first_rows = (torch.arange(len(images)) * tokens_each)[:, None]
    rows = (first_rows + places).flatten()[compared], (first_rows + cells).flatten()[compared], mmd_rows
    draws = [Draw(chosen, store.dim) for chosen in rows]
    for read_tokens in store.batches(images.split(BATCH)):
        tokens = store.standardise(read_tokens)
        for draw in draws:
            draw.take(tokens)
    return Sample(draws[0].kept, draws[1].kept, draws[2].kept, compared, cells)


@dataclass(frozen=True)
class Relations:
    """How real images relate to each other, and how well two halves of their own tokens agree on it.

    The halves are the two colours of a checkerboard on the token grid: two samples of one image that share no token.
    Their agreement is a level that real tokens reach, not a bound: a good reconstruction keeps more of an image than
    half of its tokens say about the other half.
    """

    gram: Tensor
    """[n, n] float64."""
    overlap_of_halves: float
    cka_of_halves: float

    @cached_property
    def neighbours(self) -> Tensor:
        return nearest(self.gram, protocol.NEIGHBOURS)


def relations(store: TokenStore, images: Tensor) -> Relations | None:
    """From the store's cache, or computed now (one process computes, others wait); None for too few images.

    Raises:
        StoreError: the cache is damaged.
    """
    if len(images) < protocol.MIN_NEIGHBOUR_IMAGES:
        return None
    path = store.derived_dir / f"relations-p{protocol.PROTOCOL}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{path}.lock"):
        if not path.is_file():
            with atomic_path(path) as temporary:
                save_file(_relate(store, images), temporary)
        try:
            found = load_file(path)
        except SafetensorError as error:
            raise StoreError(f"{path}: damaged; remove it and it is computed again") from error
    return Relations(found["gram"], *found["halves"].tolist())


def new_features(store: TokenStore, num_images: int, device: torch.device) -> ImageFeatures:
    """Features of images by the protocol's sizes and seed. At L/14-336 2,048 images take 0.13 GB; the most that can
    be is 0.54 GB."""
    return ImageFeatures(
        num_images,
        store.num_tokens * store.dim,
        limit=protocol.MAX_FEATURES,
        places=protocol.SKETCH_FEATURES,
        seed=protocol.SEED,
        device=device,
    )


def _relate(store: TokenStore, images: Tensor) -> dict[str, Tensor]:
    rows = torch.arange(store.num_tokens) // store.token_grid
    black = ((rows + torch.arange(store.num_tokens) % store.token_grid) % 2).float()[:, None]
    # One after another: three feature matrices at once would be three times the memory.
    gram, *halves = (_gram(store, images, part) for part in (torch.ones_like(black), black, 1 - black))
    overlap = neighbour_overlap(*(nearest(half, protocol.NEIGHBOURS) for half in halves))
    agreement = torch.tensor([overlap, cka(*halves)], dtype=torch.float64)
    return {"gram": gram, "halves": agreement}


def _gram(store: TokenStore, images: Tensor, part_N1: Tensor) -> Tensor:
    features = new_features(store, len(images), torch.device("cpu"))
    for tokens in store.batches(images.split(BATCH)):
        features.add(store.standardise(tokens) * part_N1)
    return features.gram()

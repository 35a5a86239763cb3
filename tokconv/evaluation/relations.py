"""How images relate to each other before and after reconstruction: the figures knn_overlap and cka.

The relations of real images depend on the store alone and are computed once.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tokconv.evaluation import heldout, protocol
from tokconv.evaluation.heldout import Batch
from tokconv.evaluation.metrics.features import ImageFeatures
from tokconv.evaluation.metrics.similarity import cka, nearest, neighbour_overlap
from tokconv.store.cache import Tensors, computed_once, has_shapes
from tokconv.store.reader import TokenStore


class ImageRelations:
    """The figures knn_overlap and cka of a codec, from batches in the order of the images.

    Real images also say how well two halves of their own tokens agree: the two colours of a checkerboard on the token
    grid, two samples of one image that share no token. Their agreement is a level that real tokens reach, not a bound:
    a good reconstruction keeps more of an image than half of its tokens say about the other half.

    At L/14-336 the features of 2,048 images take 0.13 GB; they never take more than 0.54 GB.

    Args:
        store: the relations of its real images are computed at the first call per store.
        images: [n] int64, the held-out images, at least MIN_NEIGHBOUR_IMAGES.
        device: where the tokens are.

    Raises:
        StoreError: the file of the real relations is damaged.
    """

    def __init__(self, store: TokenStore, images: Tensor, device: torch.device) -> None:
        count = len(images)
        # Files named relations-p2.safetensors, written by earlier versions, do not say which store they are of.
        name = f"image-relations-p{protocol.PROTOCOL}.safetensors"
        check = has_shapes({"gram": (count, count), "halves": (2,)})
        real = computed_once(store, name, lambda: _relate(store, images), Tensors(), check=check)
        self._gram, self._halves = real["gram"], real["halves"]
        self._neighbours = nearest(self._gram, protocol.NEIGHBOURS)
        self._features = _new_features(store, count, device)

    def start(self) -> None:
        """Forget all images."""
        self._features.restart()

    def add(self, batch: Batch) -> None:
        """Add the next images."""
        self._features.add(batch.standardised)

    def figures(self) -> dict[str, float]:
        """Return the figures of all images."""
        gram = self._features.gram()
        neighbours = nearest(gram, protocol.NEIGHBOURS)
        return {
            "val/knn_overlap": neighbour_overlap(self._neighbours, neighbours),
            "val/cka": cka(self._gram, gram),
        }

    def real_figures(self) -> dict[str, float]:
        """Return what halves of real images get."""
        overlap, alignment = self._halves.tolist()
        return {"val/knn_overlap_halves": overlap, "val/cka_halves": alignment}


def _new_features(store: TokenStore, num_images: int, device: torch.device) -> ImageFeatures:
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
    # One after another: three feature matrices at once would take three times the memory.
    gram, *halves = (_gram(store, images, part) for part in (torch.ones_like(black), black, 1 - black))
    overlap = neighbour_overlap(*(nearest(half, protocol.NEIGHBOURS) for half in halves))
    agreement = torch.tensor([overlap, cka(*halves)], dtype=torch.float64)
    return {"gram": gram, "halves": agreement}


def _gram(store: TokenStore, images: Tensor, part_N1: Tensor) -> Tensor:
    features = _new_features(store, len(images), torch.device("cpu"))
    for tokens in store.batches(images.split(heldout.BATCH)):
        features.add(store.standardise(tokens) * part_N1)
    return features.gram()

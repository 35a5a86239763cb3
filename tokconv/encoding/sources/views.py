"""Several views of each training image: the image as it is, and random crops of it, half of them mirrored.

View 0 is the image. The others depend on its key and the number of the view alone: a store is the same in any order,
with any number of encoders, and after an interruption. The views of an image are all on the side of the split where the
image is, and held-out images have view 0 only, so that figures are those of images as they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.encoding.sources.base import ImageItem, ImageSource
from tokconv.store.format import VIEW

SEED = 0
AREA = (0.5, 1.0)
"""The share of the image's area that a crop takes, least and most."""
ASPECT = (3 / 4, 4 / 3)
"""Width over height of a crop, least and most."""


class ViewsSource:
    """The views of the images of a source; those of one image are neighbours.

    Args:
        splits: train or val, for every image of the source.
        views: of a training image, the image itself included.
    """

    def __init__(self, source: ImageSource, splits: Sequence[str], views: int) -> None:
        self.source, self.views = source, views
        self.name, self.class_names, self.notes = source.name, source.class_names, source.notes
        self._images: list[int] = []
        items: list[ImageItem] = []
        for image, (item, split) in enumerate(zip(source.items, splits, strict=True)):
            for view in range(views if split == "train" else 1):
                # An image file's name ends in a suffix, so no key of an image looks like that of a view.
                items.append(ImageItem(f"{item.key}{VIEW}{view}" if view else item.key, item.label, split, view))
                self._images.append(image)
        self.items = tuple(items)

    def load(self, index: int) -> Image.Image | Tensor:
        image, view = self.source.load(self._images[index]), self.items[index].view
        if not view:
            return image
        if isinstance(image, Tensor):
            raise ValueError("tokens have no views; only images have")
        return draw_view(image, self.source.items[self._images[index]].key, view)

    def identity(self) -> dict[str, Any]:
        return {**self.source.identity(), "views": self.views}

    def probed_identity(self) -> dict[str, Any]:
        return {**self.source.probed_identity(), "views": self.views}

    def stats(self, indices: Sequence[int]) -> Tensor:
        return self.source.stats([self._images[index] for index in indices])

    def content(self, index: int) -> bytes:
        """Return the digest of the whole image, of which a view is a function."""
        return self.source.content(self._images[index])


def draw_view(image: Image.Image, key: str, view: int) -> Image.Image:
    """Return a crop of an image, mirrored or not, in the image's own pixels: the tower's preprocessing resizes it.

    The crop is drawn as by `torchvision.transforms.v2.RandomResizedCrop` (Szegedy et al. 2014, arXiv:1409.4842).
    Resizing here as well would blur the image twice.

    Args:
        key: of the image.
        view: from 1; each number is another draw.
    """
    from torchvision.transforms import v2  # takes half a second, and only views need it
    from torchvision.transforms.v2 import functional

    seed = hashlib.sha256(f"{SEED}\t{view}\t{key}".encode("utf-8", "surrogateescape")).digest()
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int.from_bytes(seed[:7]))
        place = v2.RandomResizedCrop(size=1, scale=AREA, ratio=ASPECT).make_params([image])
        mirrored = bool(torch.rand(()) < 0.5)
    crop: Image.Image = functional.crop(image, place["top"], place["left"], place["height"], place["width"])
    return functional.horizontal_flip(crop) if mirrored else crop

"""Sources that need no download: images that ship inside the scikit-learn and scikit-image wheels."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokconv.encoding.sources.base import ImageItem, basic_identity, content_digest, file_stats
from tokconv.encoding.sources.files import open_image
from tokconv.errors import DataError, import_extra

DIGITS_SEED = 0

# The two images of a stereo pair would put one scene on both sides of the split, so only the left one is listed.
# Drawings, charts and synthetic images are left out.
PHOTOGRAPHS = {
    "sklearn/datasets/images": "china.jpg flower.jpg",
    "skimage/data": "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png "
    "grass.png gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg",
}
PACKAGES = {"sklearn": "scikit-learn", "skimage": "scikit-image"}
VIEWS = {
    "whole": (0, 0, 2, 2),
    "top-left": (0, 0, 1, 1),
    "top-right": (1, 0, 2, 1),
    "bottom-left": (0, 1, 1, 2),
    "bottom-right": (1, 1, 2, 2),
}
"""Left, top, right and bottom of each view, in halves of the photograph."""


class DigitsSource:
    """The 1,797 handwritten digits that ship with scikit-learn, 8 x 8 gray; 1,400 of them are training images.

    The split is that of the bundled tower's training, so that its held-out digits stay held out.

    Raises:
        MissingExtraError: scikit-learn is not installed.
    """

    name = "digits"
    class_names = tuple(str(digit) for digit in range(10))
    notes: tuple[str, ...] = ()
    num_train = 1400

    def __init__(self) -> None:
        digits = import_extra("sklearn.datasets", "demo").load_digits()
        self._gray = np.rint(digits.images / 16 * 255).astype(np.uint8)
        order = torch.randperm(len(self._gray), generator=torch.Generator().manual_seed(DIGITS_SEED))
        train = set(order[: self.num_train].tolist())
        self.items = tuple(
            ImageItem(f"digit-{index:04d}", int(label), "train" if index in train else "val")
            for index, label in enumerate(digits.target)
        )

    def load(self, index: int) -> Image.Image:
        return Image.fromarray(self._gray[index]).convert("RGB")

    def identity(self) -> dict[str, Any]:
        return basic_identity(self)

    probed_identity = identity

    def stats(self, indices: Sequence[int]) -> Tensor:
        return file_stats([None] * len(indices))

    def content(self, index: int) -> bytes:
        return content_digest(self._gray[index].tobytes())


class PhotographsSource:
    """Unlabelled photographs that ship inside the scikit-learn and scikit-image wheels: each whole, and as quadrants.

    Every fifth photograph is held out with all its views.

    Raises:
        MissingExtraError: scikit-learn or scikit-image is not installed.
        DataError: the installed package lacks one of the photographs. The split is by position, so dropping one would
            move others to the other side.
    """

    name = "photographs"
    class_names: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()

    def __init__(self) -> None:
        paths = [path for folder, files in PHOTOGRAPHS.items() for path in _installed_files(folder, files.split())]
        self._views = [(path, box) for path in paths for box in VIEWS.values()]
        self.items = tuple(
            ImageItem(f"{path.stem}/{view}", split="val" if number % 5 == 1 else "train")
            for number, path in enumerate(paths)
            for view in VIEWS
        )

    def load(self, index: int) -> Image.Image:
        path, (left, top, right, bottom) = self._views[index]
        image = open_image(path)
        width, height = image.size
        return image.crop((left * width // 2, top * height // 2, right * width // 2, bottom * height // 2))

    def identity(self) -> dict[str, Any]:
        return basic_identity(self)

    probed_identity = identity

    def stats(self, indices: Sequence[int]) -> Tensor:
        return file_stats([str(self._views[index][0]) for index in indices])

    def content(self, index: int) -> bytes:
        return content_digest(self._views[index][0])


def _installed_files(folder: str, names: list[str]) -> list[Path]:
    """Return the files of an installed package; `folder` starts with the package's import name."""
    package, _, below = folder.partition("/")
    root = Path(str(import_extra(package, "demo").__file__)).parent / below
    for name in names:
        if not (root / name).is_file():
            raise DataError(
                f"data.source=photographs: the installed {PACKAGES[package]} lacks {name} (in {root}); install the "
                "version that constraints.txt names"
            )
    return [root / name for name in names]

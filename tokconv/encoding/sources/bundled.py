"""Sources that need no download: images inside the scikit-learn and scikit-image wheels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from tokconv.encoding.sources.base import ImageItem, basic_identity
from tokconv.encoding.sources.files import open_image
from tokconv.errors import import_extra

DIGITS_SEED = 0

# A stereo pair would put one scene on both sides of the split, so only its left half is here; drawings, charts and
# synthetic images are left out.
FROM_SKLEARN = "china.jpg flower.jpg"
FROM_SKIMAGE = (
    "astronaut.png brick.png camera.png cell.png chelsea.png clock_motion.png coffee.png coins.png grass.png "
    "gravel.png hubble_deep_field.jpg ihc.png moon.png motorcycle_left.png page.png retina.jpg rocket.jpg"
)
VIEWS = {
    "whole": (0, 0, 2, 2),
    "top-left": (0, 0, 1, 1),
    "top-right": (1, 0, 2, 1),
    "bottom-left": (0, 1, 1, 2),
    "bottom-right": (1, 1, 2, 2),
}
"""Left, top, right and bottom of a view, in halves of the photograph."""


class DigitsSource:
    """The 1,797 handwritten digits that ship with scikit-learn, 8 x 8 gray, 1,400 of them to train on.

    The split is the one that the bundled tower was trained with, so that its held-out digits stay held out.
    Raises MissingExtraError without scikit-learn.
    """

    name = "digits"
    class_names = tuple(str(digit) for digit in range(10))
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


class PhotographsSource:
    """Photographs that ship inside the scikit-learn and scikit-image wheels: each whole, and its four quadrants.

    Every fifth photograph is held out with all its views. No labels, no download.
    Raises MissingExtraError without scikit-learn or scikit-image.
    """

    name = "photographs"
    class_names: tuple[str, ...] = ()

    def __init__(self) -> None:
        folders = {"sklearn": "datasets/images", "skimage": "data"}
        roots = {name: Path(str(import_extra(name, "demo").__file__)).parent / sub for name, sub in folders.items()}
        files = {"sklearn": FROM_SKLEARN, "skimage": FROM_SKIMAGE}
        paths = [roots[name] / file for name, text in files.items() for file in text.split()]
        paths = [path for path in paths if path.is_file()]
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

"""Images many times longer than wide: the same pixels as from the processor alone, in bounded memory."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessor, SiglipImageProcessor

from tokconv.encoding.towers.thin import MAX_RATIO, shorten
from tokconv.encoding.towers.tower import preprocess

SIZE = 32
CROPS = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=SIZE)
PADS = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size=2 * SIZE + 10)
CROPS_A_SQUARE = CLIPImageProcessor(size={"height": SIZE, "width": SIZE}, crop_size=SIZE)
SQUEEZES = SiglipImageProcessor(size={"height": SIZE, "width": SIZE})


def noise(width: int, height: int) -> Image.Image:
    random = np.random.default_rng(width * height)
    return Image.fromarray(random.integers(0, 255, (height, width, 3), dtype=np.uint8))


def alone(processor: Any, image: Image.Image) -> Any:
    return processor([image], return_tensors="pt")["pixel_values"]


@pytest.mark.parametrize("processor", [CROPS, PADS, CROPS_A_SQUARE, SQUEEZES])
@pytest.mark.parametrize("size", [(1, 1), (3, 2), (1, MAX_RATIO), (5 * MAX_RATIO, 5), (640, 480)])
def test_ordinary_images_are_left_alone(processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    assert shorten(processor, image) is image
    assert torch.equal(preprocess(processor, [image]), alone(processor, image))


@pytest.mark.parametrize("processor", [CROPS, PADS, CROPS_A_SQUARE, SQUEEZES])
@pytest.mark.parametrize("size", [(1, 33), (1, 100), (101, 1), (100, 1), (700, 7), (3, 1000), (2, 2001)])
def test_thin_images_give_what_the_processor_alone_gives(processor: Any, size: tuple[int, int]) -> None:
    image = noise(*size)
    found, wanted = preprocess(processor, [image]), alone(processor, image)
    # Resizing in two steps rounds to 8 bits twice: up to three levels of noise, of at most 0.0171 each.
    assert (found - wanted).abs().max() < 0.052


@pytest.mark.parametrize("processor", [CROPS, PADS, CROPS_A_SQUARE, SQUEEZES])
@pytest.mark.parametrize("size", [(20_000, 1), (1, 20_000), (9_000_000, 1), (1, 9_000_000), (50_000, 400)])
def test_what_a_processor_enlarges_is_bounded(processor: Any, size: tuple[int, int]) -> None:
    image = Image.new("RGB", size, (7, 8, 9))
    shortened = shorten(processor, image)
    assert max(shortened.size) <= (MAX_RATIO + 1) * max(SIZE, min(shortened.size))
    assert torch.equal(preprocess(processor, [image]), alone(processor, Image.new("RGB", shortened.size, (7, 8, 9))))

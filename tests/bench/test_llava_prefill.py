"""What fewer visual tokens save a LLaVA: prefill time and bytes of the KV cache. Prints ratios, asserts no time.

The bundled tower in front of a randomly initialised language model: time does not depend on what the weights are.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median

import torch
from conftest import Row, Times
from PIL import Image
from support.llavas import make_llava, make_processor
from transformers import LlavaForConditionalGeneration

from tokconv.integrations.llava import attach
from tokconv.models.compressor import ResidualCompressor

REPEATS = 5
WIDTH, LAYERS = 768, 8
GRIDS = (12, 8, 6, 4)


def test_prefill_and_cache_by_visual_tokens(table: Callable[[Row], None]) -> None:
    model, processor = make_llava(width=WIDTH, layers=LAYERS), make_processor()
    rows = [_measure(model, processor)]
    for grid in GRIDS:
        with attach(model, ResidualCompressor(24, 64, grid), processor, layer=-2):
            rows.append(_measure(model, processor))
    (_, reference, whole), *others = rows
    for tokens, times, cached in others:
        table(
            Row(
                f"LLaVA prefill with {tokens} visual tokens, language model of {LAYERS} layers x {WIDTH}",
                f"576: {Times(reference)}, KV cache {whole / 1e6:.1f} MB",
                f"{Times(times)}, {cached / 1e6:.1f} MB",
                f"{median(reference) / median(times):.1f}x and {whole / cached:.1f}x less",
            )
        )


def _measure(model: LlavaForConditionalGeneration, processor: object) -> tuple[int, list[float], int]:
    """Visual tokens, seconds of each prefill (tower and projector included), bytes of keys and values after it."""
    text = "user : <image> what is this ? assistant :"
    inputs = processor(images=[Image.new("RGB", (96, 96))], text=[text], return_tensors="pt")  # type: ignore[operator]
    visual = int((inputs["input_ids"] == model.config.image_token_id).sum())
    times, cached = [], 0
    with torch.inference_mode():
        for repeat in range(REPEATS + 1):
            start = time.perf_counter()
            cache = model(**inputs, use_cache=True, logits_to_keep=1).past_key_values
            if repeat:  # the first one warms up
                times.append(time.perf_counter() - start)
            cached = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return visual, times, cached

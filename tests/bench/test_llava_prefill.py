"""What fewer visual tokens save a LLaVA: prefill time and bytes of the KV cache. Prints ratios, asserts no time.

The bundled tower in front of a randomly initialised language model: time does not depend on what the weights are.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from statistics import median

import torch
from PIL import Image
from transformers import LlavaForConditionalGeneration

sys.path.insert(0, str(Path(__file__).parents[1]))
from llavas import make_llava, make_processor

from tokconv.integrations.llava import attach
from tokconv.models.compressor import ResidualCompressor

REPEATS = 5
WIDTH, LAYERS = 768, 8
GRIDS = (12, 8, 6, 4)


def test_prefill_and_cache_by_visual_tokens() -> None:
    model, processor = make_llava(width=WIDTH, layers=LAYERS), make_processor()
    print(f"\nlanguage model of {LAYERS} layers x {WIDTH}, {torch.get_num_threads()} threads, median of {REPEATS}")
    print("visual tokens  prefill ms  (spread)      ratio  KV cache MB  ratio")
    rows = [_measure(model, processor)]
    for grid in GRIDS:
        with attach(model, ResidualCompressor(24, 64, grid), processor, layer=-2):
            rows.append(_measure(model, processor))
    for tokens, times, cached in rows:
        print(
            f"{tokens:13d}  {median(times) * 1e3:10.1f}  ({min(times) * 1e3:.1f}-{max(times) * 1e3:.1f})"
            f"  {median(rows[0][1]) / median(times):5.1f}x  {cached / 1e6:11.2f}  {rows[0][2] / cached:4.1f}x"
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

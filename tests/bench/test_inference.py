"""What a compressor costs beside the encoder whose tokens it reads: L/14-336, every grid; compiled, and in bfloat16."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Row, measure, measure_in_turn
from transformers import CLIPVisionConfig, CLIPVisionModel

from tokconv.models.compressor import ResidualCompressor
from tokconv.training.flops import count, tower_flops

GRID, DIM, LAYERS, IMAGE, PATCH, BATCH = 24, 1024, 24, 336, 14, 8
GRIDS = (4, 6, 8, 12)


@pytest.fixture(scope="module")
def tokens() -> torch.Tensor:
    return torch.randn(BATCH, GRID**2, DIM, generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_against_the_encoder(tokens: torch.Tensor, table: Callable[[Row], None]) -> None:
    sizes = {"hidden_size": DIM, "intermediate_size": 4 * DIM, "num_hidden_layers": LAYERS - 1}
    config = CLIPVisionConfig(**sizes, num_attention_heads=16, image_size=IMAGE, patch_size=PATCH)
    encoder = CLIPVisionModel(config).eval()
    pixels = torch.randn(BATCH, 3, IMAGE, IMAGE)
    reference = measure(lambda: encoder(pixels), 1)
    whole = tower_flops(
        image_size=IMAGE, patch_size=PATCH, dim=DIM, num_layers=LAYERS, mlp_dim=4 * DIM, num_special_tokens=1
    )
    for grid in GRIDS:
        compressor = ResidualCompressor(GRID, DIM, grid).eval()
        times, flops = measure(lambda model=compressor: model(tokens)), count(compressor, 1, GRID**2, DIM)[1]
        share, of_flops = times.middle / reference.middle, flops / whole
        table(
            Row(
                f"compressor to {grid} x {grid}, {BATCH} images",
                f"L/14-336 up to layer -2: {reference}",
                f"{times}",
                f"{share:.2%} of its time, {of_flops:.2%} of its FLOPs",
                "2 % and 1 %",
                share <= 0.02 and of_flops <= 0.01,
            )
        )


@torch.no_grad()
def test_compiled_and_in_half_precision(tokens: torch.Tensor, table: Callable[[Row], None]) -> None:
    torch.manual_seed(0)
    model = ResidualCompressor(GRID, DIM, 6).eval()
    torch.nn.init.normal_(model.branch.leave.weight, std=0.01)  # type: ignore[union-attr]
    compiled, half = torch.compile(model), ResidualCompressor(GRID, DIM, 6).eval().bfloat16()
    half.load_state_dict(model.state_dict())
    halved = tokens.bfloat16()
    exact = model(tokens)
    errors = {
        "torch.compile": float((compiled(tokens) - exact).abs().max() / exact.std()),
        "bfloat16": float((half(halved).float() - exact).abs().max() / exact.std()),
    }
    works = {
        "eager": lambda: model(tokens),
        "torch.compile": lambda: compiled(tokens),
        "bfloat16": lambda: half(halved),
    }
    times = measure_in_turn(works, 7)
    for name, error in errors.items():
        ratio = times["eager"].middle / times[name].middle
        what = f"compressor to 6 x 6, {name}"
        table(Row(what, f"{times['eager']}", f"{times[name]}", f"{ratio:.2f}x, differs by {error:.1e} of a deviation"))

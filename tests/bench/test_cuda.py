"""On a CUDA card: the training step and its share of the card's own bf16 peak at every grid, encoding, the published
loop on the same card, and what waits for the device inside the loop. Skipped where there is none."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from statistics import median

import pytest
import torch
from conftest import Row, seconds
from plain_loop import plain_step
from published import Published
from transformers import CLIPVisionConfig, CLIPVisionModel

from tokconv.learner import Learner
from tokconv.networks import TokenShape
from tokconv.overrides import compose
from tokconv.step_cost import StepMeter

GRID, DIM, BATCH, N_CRITIC = 24, 1024, 256, 5
GRIDS = (4, 6, 8, 12)

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA card")


def timed(work: Callable[[], object], repeats: int = 10) -> float:
    """Median seconds, the device waited for."""
    times = []
    for repeat in range(repeats + 3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        work()
        torch.cuda.synchronize()
        if repeat >= 3:
            times.append(time.perf_counter() - start)
    return median(times)


@pytest.fixture(scope="module")
def peak() -> float:
    """FLOP/s of the best of a few large bf16 matrix products."""
    rates = []
    for size in (4096, 8192, 16384):
        a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
        rates.append(2 * size**3 / timed(lambda a=a: a @ a))
    return max(rates)


def learner(grid: int) -> Learner:
    sizes = [f"model.compressor.output_grid_size={grid}", f"training.n_critic={N_CRITIC}"]
    config = compose([*sizes, f"training.batch_size={BATCH}"])
    shape = TokenShape(GRID, DIM, torch.zeros(DIM), 1.0)
    device = torch.device("cuda")
    return Learner(config, shape, device=device, wrap=lambda m: m.to(device), total_steps=10**6)  # type: ignore[arg-type]


@pytest.mark.parametrize("grid", GRIDS)
def test_step(grid: int, peak: float, table: Callable[[Row], None]) -> None:
    of, steps = learner(grid), iter(range(1000))
    tokens = torch.randn(BATCH, GRID**2, DIM).pin_memory()
    taken = timed(lambda: of.step(tokens, next(steps)))
    shape = TokenShape(GRID, DIM, torch.zeros(DIM), 1.0)
    flops = BATCH * StepMeter(shape, device=torch.device("cpu"), timed=False)(of.config).flops
    what = f"step of {BATCH} images at {grid} x {grid}, bf16 autocast, float32 penalty"
    table(
        Row(
            what,
            f"bf16 peak {peak / 1e12:.0f} TFLOP/s",
            f"{seconds(taken)}, {BATCH / taken:.0f} images/s",
            f"{flops / taken / peak:.1%} of the peak",
        )
    )


def test_the_published_loop(table: Callable[[Row], None]) -> None:
    published, batch = Published(GRID, DIM, 6, device="cuda"), 64
    tokens = torch.randn(batch, GRID**2, DIM, device="cuda")
    draw = lambda: published.draw(tokens)  # noqa: E731
    theirs = timed(lambda: plain_step(published.networks, tokens, draw, n_critic=N_CRITIC, lambda_gp=10.0), 3) / batch
    of, steps, own = learner(6), iter(range(1000)), torch.randn(BATCH, GRID**2, DIM).pin_memory()
    ours = timed(lambda: of.step(own, next(steps))) / BATCH
    table(
        Row(
            "an image of a step, published loop in float32", seconds(theirs), seconds(ours), f"**{theirs / ours:.0f}x**"
        )
    )


def test_what_waits_for_the_device(table: Callable[[Row], None]) -> None:
    """One wait a step is meant: the check that nothing has diverged."""
    of, tokens = learner(6), torch.randn(BATCH, GRID**2, DIM).pin_memory()
    of.step(tokens, 0)
    with waits() as found:
        of.step(tokens, 1)
    table(Row("waits for the device in a step", "", str(len(found)), "", "1", len(found) <= 1))


@contextmanager
def waits() -> Iterator[list[str]]:
    import warnings

    torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found: list[str] = []
            yield found
            found += [str(warning.message) for warning in caught if "synchroniz" in str(warning.message)]
    finally:
        torch.cuda.set_sync_debug_mode("default")


@torch.no_grad()
def test_encoding(peak: float, table: Callable[[Row], None]) -> None:
    sizes = {"hidden_size": DIM, "intermediate_size": 4 * DIM, "num_hidden_layers": 23, "num_attention_heads": 16}
    encoder = CLIPVisionModel(CLIPVisionConfig(**sizes, image_size=336, patch_size=14)).cuda().bfloat16().eval()
    pixels = torch.randn(64, 3, 336, 336, device="cuda", dtype=torch.bfloat16)
    taken = timed(lambda: encoder(pixels))
    table(Row("L/14-336 forward in bf16", f"peak {peak / 1e12:.0f} TFLOP/s", f"{64 / taken:.0f} images/s", ""))

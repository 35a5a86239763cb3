"""On a CUDA card: the training step and its share of the card's own bf16 peak at every grid, what else could be done to
it, the published loop on the same card, what waits for the device inside the loop, encoding, and several trials that
share a card. Skipped where there is none."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

import pytest
import torch
import yaml
from conftest import Row, run, seconds
from published import Published
from support.plain_loop import plain_step
from transformers import CLIPVisionConfig, CLIPVisionModel

from tokconv.config.overrides import compose
from tokconv.training.networks import TokenShape
from tokconv.training.step import Trainer
from tokconv.training.step_cost import StepMeter

GRID, DIM, BATCH, N_CRITIC = 24, 1024, 256, 5
GRIDS = (4, 6, 8, 12)
TOKCONV = str(Path(sys.executable).with_name("tokconv"))
TRIALS = 8

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


def trainer(grid: int) -> Trainer:
    sizes = ["recipe=published", f"model.compressor.output_grid_size={grid}", f"training.n_critic={N_CRITIC}"]
    config = compose([*sizes, f"training.batch_size={BATCH}"])
    shape = TokenShape(GRID, DIM, torch.zeros(DIM), 1.0)
    device = torch.device("cuda")
    return Trainer(config, shape, device=device, wrap=lambda m: m.to(device), total_steps=10**6)


@pytest.mark.parametrize("grid", GRIDS)
def test_step(grid: int, peak: float, table: Callable[[Row], None]) -> None:
    of, steps = trainer(grid), iter(range(1000))
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


def tf32(of: Trainer) -> None:
    """Products of float32 matrices, as in the penalty, on tensor cores: no longer float32's precision."""
    torch.set_float32_matmul_precision("high")


def channels_last(of: Trainer) -> None:
    of._autoencode.to(memory_format=torch.channels_last)


def compiled(of: Trainer) -> None:
    """Compressor and decoder; never the critic, whose penalty differentiates twice, which torch.compile does not."""
    of._autoencode.compile()


@pytest.mark.parametrize("change", [tf32, channels_last, compiled], ids=lambda change: change.__name__)
def test_what_else_could_be_done(change: Callable[[Trainer], None], table: Callable[[Row], None]) -> None:
    """Not in the product: what gains 5 % here is to be taken in."""
    tokens, taken = torch.randn(BATCH, GRID**2, DIM).pin_memory(), {}
    try:
        for name in ("as it is", change.__name__):
            of, steps = trainer(6), iter(range(1000))
            if name != "as it is":
                change(of)
            taken[name] = timed(lambda of=of, steps=steps: of.step(tokens, next(steps)))
    finally:
        torch.set_float32_matmul_precision("highest")
    before, after = taken.values()
    table(
        Row(
            f"step of {BATCH} images at 6 x 6, {change.__name__}",
            seconds(before),
            seconds(after),
            f"{before / after:.2f}x",
        )
    )


def test_trials_that_share_a_card(table: Callable[[Row], None], tmp_path: Path) -> None:
    """Two at a time, each with half of the card, against one after the other; the store is there already."""
    spec = {
        "base": ["training.epochs=3", f"data.store={tmp_path}/store"],
        "search": {"training.learning_rate": {"log": [1e-4, 1e-3]}},
        "trials": TRIALS,
        "early_stopping": "none",
        "confirm": "none",
        "storage": str(tmp_path / "runs"),
    }
    took = {}
    for share in (1.0, 0.5):
        resources = {"runner": "inline", "gpus_per_worker": share, "cpus_per_worker": 1}
        packed = spec | {"name": f"share-{int(100 * share)}", "resources": resources, "concurrency": round(1 / share)}
        (tmp_path / "spec.yaml").write_text(yaml.safe_dump(packed))
        run(TOKCONV, "sweep", "spec.yaml", "--allow-unproven", cwd=tmp_path)
        record = next((tmp_path / "runs").rglob(f"share-{int(100 * share)}-*/events.jsonl")).read_text().splitlines()
        times = [
            event["time"] for event in map(json.loads, record) if event["event"] in ("trial_started", "trial_ended")
        ]
        took[share] = (max(times) - min(times)) / 1e3
    table(
        Row(
            f"{TRIALS} demo trials, two on the card at a time",
            f"one after another: {seconds(took[1.0])}",
            seconds(took[0.5]),
            f"{took[1.0] / took[0.5]:.2f}x",
        )
    )


def test_the_published_loop(table: Callable[[Row], None]) -> None:
    published, batch = Published(GRID, DIM, 6, device="cuda"), 64
    tokens = torch.randn(batch, GRID**2, DIM, device="cuda")
    draw = lambda: published.draw(tokens)  # noqa: E731
    theirs = timed(lambda: plain_step(published.networks, tokens, draw, n_critic=N_CRITIC, lambda_gp=10.0), 3) / batch
    of, steps, own = trainer(6), iter(range(1000)), torch.randn(BATCH, GRID**2, DIM).pin_memory()
    ours = timed(lambda: of.step(own, next(steps))) / BATCH
    table(
        Row(
            "an image of a step, published loop in float32", seconds(theirs), seconds(ours), f"**{theirs / ours:.0f}x**"
        )
    )


def test_what_waits_for_the_device(table: Callable[[Row], None]) -> None:
    """One wait a step is meant: the check that nothing has diverged."""
    of, tokens = trainer(6), torch.randn(BATCH, GRID**2, DIM).pin_memory()
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

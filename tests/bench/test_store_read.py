"""Reading the token store at 24 x 24 x 1024: random batches against a sequential copy, memory, int8, reading ahead."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import torch
from conftest import Row, measure, seconds

from tokconv.store.format import StoreSettings, default_shard_size, map_shard, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter

GRID, DIM, IMAGES, BATCH = 24, 1024, 512, 32


@pytest.fixture(scope="module", params=["float16", "int8"])
def store(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write(tmp_path_factory.mktemp("stores") / request.param, request.param, IMAGES)


def write(path: Path, dtype: str, images: int) -> TokenStore:
    settings = StoreSettings(
        encoder={"name": "bench"},
        source={"name": dtype},
        num_items=images,
        token_grid=GRID,
        dim=DIM,
        dtype=dtype,
        shard_size=default_shard_size(GRID, DIM, dtype),
    )
    generator = torch.Generator().manual_seed(0)
    with StoreWriter(path, settings) as writer:
        for number in range(settings.num_shards):
            items = list(settings.shard_items(number))
            tokens = torch.randn(len(items), GRID**2, DIM, generator=generator)
            writer.write_shard(number, pack(tokens, dtype), items)
        writer.finish([str(i) for i in range(images)], ["val" if i % 8 == 0 else "train" for i in range(images)])
    return TokenStore.open(path)


def test_random_batches_against_a_sequential_copy(store: TokenStore, table: Callable[[Row], None]) -> None:
    order = torch.randperm(IMAGES, generator=torch.Generator().manual_seed(1)).split(BATCH)
    out = torch.empty(BATCH, GRID**2, DIM)

    def random() -> None:
        for indices in order:
            store.tokens(indices, out)

    files = sorted(store.path.glob("*.safetensors"))

    def sequential() -> None:
        """The same bytes in the order of the disk, a batch a call, to float32."""
        for file in files:
            packed = map_shard(file)
            for first in range(0, len(packed["tokens"]), BATCH):
                part = packed["tokens"][first : first + BATCH]
                out[: len(part)].copy_(part)
                if "scale" in packed:
                    out[: len(part)].mul_(packed["scale"][first : first + BATCH])

    size = sum(file.stat().st_size for file in files)
    ours, reference = measure(random), measure(sequential)
    share = reference.middle / ours.middle
    table(
        Row(
            f"random batches of {BATCH} images, {store.settings.dtype} to float32",
            f"sequential copy {size / reference.middle / 1e9:.1f} GB/s",
            f"{size / ours.middle / 1e9:.1f} GB/s, {seconds(ours.middle / len(order))} a batch",
            f"{share:.0%} of its speed",
            "80 %",
            share >= 0.8,
        )
    )


def test_int8_halves_bytes(table: Callable[[Row], None], tmp_path: Path) -> None:
    half, quarter = (write(tmp_path / dtype, dtype, 32) for dtype in ("float16", "int8"))
    every = torch.arange(32)
    cosine = torch.nn.functional.cosine_similarity(half.tokens(every), quarter.tokens(every), dim=-1).min().item()
    sizes = [sum(file.stat().st_size for file in s.path.glob("*.safetensors")) for s in (half, quarter)]
    table(
        Row(
            "int8 against float16, bytes an image",
            f"{sizes[0] / 32e6:.2f} MB",
            f"{sizes[1] / 32e6:.2f} MB",
            f"{sizes[1] / sizes[0]:.2f} of the bytes, least cosine {cosine:.5f}",
            "half, 0.999",
            sizes[1] < 0.51 * sizes[0] and cosine > 0.999,
        )
    )


@pytest.fixture
def peak() -> Iterator[Callable[[], float]]:
    """MB of private memory above what there was, sampled until asked; mapped pages of a file are not private."""
    process = psutil.Process()
    start, highest, done = process.memory_full_info().uss, [0.0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            highest[0] = max(highest[0], process.memory_full_info().uss - start)

    thread = threading.Thread(target=watch)
    thread.start()
    yield lambda: highest[0] / 1e6
    done.set()
    thread.join()


def test_memory_is_flat(table: Callable[[Row], None], tmp_path: Path, peak: Callable[[], float]) -> None:
    """The page cache may hold all of a file; the process holds a batch."""
    store = write(tmp_path / "large", "float16", IMAGES)
    before = peak()
    for _ in store.batches(torch.randperm(IMAGES).split(BATCH)):
        pass
    batch = BATCH * GRID**2 * DIM * 4 / 1e6
    size = IMAGES * GRID**2 * DIM * 2 / 1e6
    grown = max(0.0, peak() - before)
    table(
        Row(
            "private memory while a whole store is read",
            f"store {size:.0f} MB, one batch in float32 {batch:.0f} MB",
            f"at most {grown:.0f} MB more than writing it took",
            f"{grown / size:.0%} of the store",
            "flat",
            grown < 2 * batch,
        )
    )

"""A training step on tokens [576, 1024] at k = 6, n_critic = 5: against the published loop, against a plain loop with
the same networks, and against the machine's own matrix multiplication."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from conftest import Row, measure, measure_in_turn, seconds
from published import Published
from support.plain_loop import Networks, Waste, plain_step
from torch import Tensor

from tokconv.config.overrides import compose
from tokconv.config.tree import Config
from tokconv.encoding.pipeline import encode
from tokconv.store.format import StoreSettings, default_shard_size, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter
from tokconv.training.networks import TokenShape
from tokconv.training.step import Trainer
from tokconv.training.step_cost import StepMeter

GRID, DIM, CELLS, N_CRITIC = 24, 1024, 6, 5
SMALL_BATCH, STEPS, IMAGES, HELD_OUT = 4, 5, 64, 16
CPU = torch.device("cpu")
SHAPES = [(1024, 1024, 1024), (2048, 2048, 2048), (4096, 4096, 4096), (1152, 16384, 1024), (1152, 1024, 16384)]


def config(batch: int) -> Config:
    """The published one, in float32."""
    sizes = ["recipe=published", f"model.compressor.output_grid_size={CELLS}", f"training.n_critic={N_CRITIC}"]
    return compose([*sizes, f"training.batch_size={batch}", "training.precision=float32"])


def trainer(batch: int, store: TokenStore | None = None, steps: int = 1_000_000) -> Trainer:
    shape = TokenShape(GRID, DIM, torch.zeros(DIM), 1.0)
    return Trainer(config(batch), store or shape, device=CPU, wrap=lambda module: module, total_steps=steps)


def plain(of: Trainer) -> Networks:
    """Its networks, with optimizers as PyTorch's documentation shows them."""
    own = [*of.compressor.parameters(), *of.decoder.parameters()]
    return Networks(
        of.compressor.compress,
        of.decoder.decode,
        of.critic,
        own,
        torch.optim.Adam(own, 1e-4),
        torch.optim.Adam(of.critic.parameters(), 1e-4),
    )


def plain_steps(networks: Networks, of: Trainer, tokens: Tensor, waste: Waste) -> Callable[[], object]:
    generator = torch.Generator().manual_seed(0)

    def draw() -> tuple[Tensor, Tensor]:
        return of.compressor.windows.sample(tokens, generator), torch.rand(len(tokens), generator=generator)

    return lambda: plain_step(networks, tokens, draw, n_critic=N_CRITIC, lambda_gp=10.0, grad_clip=1.0, waste=waste)


@pytest.fixture(scope="module")
def tokens_store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """Real tokens of the bundled tower, widened to 1,024 channels by a fixed random layer: the shape of L/14-336's, and
    the structure of real ones."""
    root = tmp_path_factory.mktemp("wide")
    count = IMAGES + HELD_OUT
    narrow = encode(compose([f"data.subset={count}", "data.num_workers=0", f"data.store={root}/narrow"]))
    generator = torch.Generator().manual_seed(0)
    mix = torch.randn(narrow.dim, DIM, generator=generator) / narrow.dim**0.5
    settings = StoreSettings(
        encoder={"name": "bench"},
        source={"name": "bench"},
        num_items=count,
        token_grid=GRID,
        dim=DIM,
        shard_size=default_shard_size(GRID, DIM, "float16"),
    )
    with StoreWriter(root / "wide", settings) as writer:
        for number in range(settings.num_shards):
            items = list(settings.shard_items(number))
            wide = torch.tanh(narrow.standardise(narrow.tokens(torch.tensor(items))) @ mix)
            writer.write_shard(number, pack(wide, settings.dtype), items)
        writer.finish([str(i) for i in range(count)], ["train"] * IMAGES + ["val"] * HELD_OUT)
    return TokenStore.open(root / "wide")


def fvu(store: TokenStore, reconstruct: Callable[[Tensor], Tensor]) -> float:
    real = store.standardise(store.tokens(store.val_indices))
    with torch.no_grad():
        return float((reconstruct(real) - real).square().sum() / real.square().sum())


def test_against_the_published_loop(tokens_store: TokenStore, table: Callable[[Row], None]) -> None:
    order = [tokens_store.train_indices[i * SMALL_BATCH : (i + 1) * SMALL_BATCH] for i in range(STEPS + 1)]
    batches = [tokens_store.tokens(indices) for indices in order]
    published = Published(GRID, DIM, CELLS)
    standardised = iter([tokens_store.standardise(batch) for batch in batches])

    def theirs() -> None:
        tokens = next(standardised)
        plain_step(published.networks, tokens, lambda: published.draw(tokens), n_critic=N_CRITIC, lambda_gp=10.0)

    reference = measure(theirs, STEPS)
    starting = measure(lambda: trainer(SMALL_BATCH, tokens_store, STEPS + 1), 1, warm_up=0)
    ours, numbered = trainer(SMALL_BATCH, tokens_store, STEPS + 1), iter(enumerate(batches))

    def mine() -> None:
        step, tokens = next(numbered)
        ours.step(tokens, step)

    times = measure(mine, STEPS)
    before = fvu(tokens_store, lambda real: published.decoder(published.compressor(real)))
    after = fvu(tokens_store, lambda real: ours.decoder.decode(ours.compressor.compress(real)))
    ratio = reference.middle / times.middle
    table(
        Row(
            f"step of {SMALL_BATCH} images, default config against the published loop",
            f"{reference}; held-out fvu {before:.3f} after {STEPS + 1} steps",
            f"{times}; held-out fvu {after:.3f} (closed-form start, once a store: {seconds(starting.middle)})",
            f"**{ratio:.0f}x**",
            "15x, at equal or better fvu",
            ratio >= 15 and after <= before,
        )
    )


def test_what_each_waste_costs(table: Callable[[Row], None]) -> None:
    """The same networks in a plain loop, and the plain loop with one waste less each."""
    batch = 16
    of, fast, steps = trainer(batch), trainer(batch), iter(range(1000))
    tokens = torch.randn(batch, GRID**2, DIM, generator=torch.Generator().manual_seed(0))
    wastes = {
        "a plain loop": Waste(),
        "- compressor and decoder once a step": Waste(compress_again=False, decode_again=False),
        "- real and compressed tokens in one pass of the critic": Waste(separate_scores=False),
        "- no gradient of the critic's weights in the generator's step": Waste(critic_gradients=False),
        "- all three": Waste(False, False, False, False),
    }
    networks = plain(of)
    works = {name: plain_steps(networks, of, tokens, waste) for name, waste in wastes.items()}
    times = measure_in_turn({**works, "tokconv": lambda: fast.step(tokens, next(steps))})
    reference, ours = times.pop("a plain loop"), times.pop("tokconv")
    what = f"step of {batch} images, the same networks in a plain loop"
    table(Row(what, f"{reference}", f"{ours}", f"**{reference.middle / ours.middle:.1f}x**"))
    for name, taken in times.items():
        table(Row(name, f"{reference}", f"{taken}", f"{reference.middle / taken.middle:.2f}x"))


def test_share_of_the_matrix_peak(table: Callable[[Row], None]) -> None:
    batch = 32
    peak = max(_matmul_rate(*shape) for shape in SHAPES)
    shape = TokenShape(GRID, DIM, torch.zeros(DIM), 1.0)
    flops = batch * StepMeter(shape, device=CPU, timed=False)(config(batch)).flops
    of, steps = trainer(batch), iter(range(1000))
    tokens = torch.randn(batch, GRID**2, DIM, generator=torch.Generator().manual_seed(0))
    times = measure(lambda: of.step(tokens, next(steps)), 5, warm_up=2)
    rate = flops / times.middle
    table(
        Row(
            f"step of {batch} images, {flops / batch / 1e9:.1f} GFLOP each",
            f"matrix multiplication, best of {len(SHAPES)} shapes: {peak / 1e9:.0f} GFLOP/s",
            f"{rate / 1e9:.0f} GFLOP/s, {seconds(times.middle / batch)} an image",
            f"{rate / peak:.0%} of the peak",
            "60 %",
            rate >= 0.6 * peak,
        )
    )


def _matmul_rate(m: int, k: int, n: int) -> float:
    a, b, out = torch.randn(m, k), torch.randn(k, n), torch.empty(m, n)
    return 2 * m * k * n / min(measure(lambda: torch.mm(a, b, out=out), 5).all)

"""Train the projector of a small LLaVA on tasks with exact answers, from stored tokens.

    python tools/public_weights.py dinov2-small textile smollm2-135m
    python tools/train_vlm.py                      # runs/vlm/model, which tokconv answers reads
    python tools/train_vlm.py --compressor textile:6:plug-in --steps 500     # runs/vlm/adapted/..., the same

Steps, each skipped if it is done: the model is assembled (`tools/assemble_vlm.py`), the training images of the tasks
are written, their tokens are encoded once to a store, and the projector is trained on the answers. The tower and the
language model stay frozen. A checkpoint is written every few steps, and the next run goes on from it: the examples of a
step depend on the seed and the step alone, so a resumed training ends at the same weights.

With `--pooled-first 0.8`, the first four fifths of the steps read 6 x 6 averages instead of all tokens, at a seventh of
the time. With `--compressor`, the trained projector is trained further on what a compressor makes of the tokens. The
result is a model of its own with that compressor beside it; the plain model stays as it is.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from assemble_vlm import assemble, start_projector
from torch import Tensor
from vlm_examples import Example, encode_once, make_examples, write_images

from tokconv.errors import ConfigError, DivergedError, TokconvError
from tokconv.exports.answers.methods import series_of
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import make_task
from tokconv.exports.artefact import FILES, load_compressor
from tokconv.exports.champions import find_champion
from tokconv.exports.integrations.attach import attach
from tokconv.models.windows import Windows
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.files import atomic_path, file_digest
from tokconv.system.terminal import progress_line

WARM_UP = 0.03
"""Share of the steps in which the learning rate rises."""
PROJECTOR = "projector.pt"
POOLED = 6
"""The side of the grid of averages that `--pooled-first` trains on."""
Read = Callable[[Tensor, int], Tensor]
"""(tokens [b, N, C], step) -> the tokens [b, K, C] that the projector reads in this step."""


@dataclass(frozen=True)
class Settings:
    """What the trained weights depend on, beside the data."""

    steps: int
    batch_size: int
    learning_rate: float
    seed: int
    pooled_first: float = 0.0
    """The share of the steps, the first ones, that read averages."""
    compressor: str = ""
    """The digest of the compressor whose tokens are read; "" for none."""


def loss_of(model: AnsweringModel, tokens_BNC: Tensor, examples: Sequence[Example]) -> Tensor:
    """Return the mean cross-entropy of the answers' tokens, each example with the same weight."""
    core, device = model.model.model, model.device
    visual = core.multi_modal_projector(tokens_BNC.to(device, model.model.dtype))
    embed = model.model.get_input_embeddings()

    def text(ids: list[int]) -> Tensor:
        return embed(torch.tensor(ids, dtype=torch.long, device=device))

    rows = [
        torch.cat([text(example.before), own, text(example.after + example.answer)])
        for own, example in zip(visual, examples, strict=True)
    ]
    # What follows an answer is padding on the right, which nothing before it reads.
    hidden = core.language_model(
        inputs_embeds=torch.nn.utils.rnn.pad_sequence(rows, batch_first=True), use_cache=False
    ).last_hidden_state
    losses = []
    for row, embedded, example in zip(hidden, rows, examples, strict=True):
        count = len(example.answer)
        predicting = row[len(embedded) - count - 1 : len(embedded) - 1]
        wanted = torch.tensor(example.answer, device=device)
        losses.append(F.cross_entropy(model.model.lm_head(predicting).float(), wanted))
    return torch.stack(losses).mean()


def batches(count: int, settings: Settings, first: int) -> Iterator[tuple[int, list[int]]]:
    """Yield each step from `first` on with the indices of its examples: every epoch in an order of its own."""
    for step in range(first, settings.steps):
        chosen = []
        for place in range(step * settings.batch_size, (step + 1) * settings.batch_size):
            generator = torch.Generator().manual_seed(settings.seed + 1 + place // count)
            chosen.append(int(torch.randperm(count, generator=generator)[place % count]))
        yield step, chosen


def all_or_pooled(token_grid: int, settings: Settings) -> Read:
    """Return how the projector reads tokens: averages of windows in the first steps, then all of them."""
    windows, pooled = Windows(token_grid, min(POOLED, token_grid)), round(settings.pooled_first * settings.steps)
    return lambda tokens, step: windows.split(tokens).mean(2) if step < pooled else tokens


def train(
    model: AnsweringModel,
    store: TokenStore,
    examples: Sequence[Example],
    settings: Settings,
    out: Path,
    save_every: int,
    read: Read | None = None,
) -> list[float]:
    """Train the projector and return the loss of every step of this run; resumes from `out`/projector.pt.

    Args:
        read: what the projector reads; None is `all_or_pooled`, for a projector that starts at noise.

    Raises:
        ConfigError: the checkpoint was made with other settings or data.
        DivergedError: the loss is not finite.
    """
    projector: Any = model.model.model.multi_modal_projector
    identity = {**asdict(settings), "store": store.fingerprint, "examples": len(examples)}
    if read is None:
        embeddings = model.model.get_input_embeddings().weight
        start_projector(projector, store.mean, store.scale, float(embeddings.square().mean().sqrt()), settings.seed)
        read = all_or_pooled(store.token_grid, settings)
    projector.requires_grad_(True)
    optimizer = torch.optim.AdamW(projector.parameters(), lr=settings.learning_rate, weight_decay=0.0)
    path, first = out / PROJECTOR, 0
    if path.is_file():
        saved = torch.load(path, weights_only=True)
        # Checkpoints of earlier versions know neither averages nor compressors.
        if {"pooled_first": 0.0, "compressor": "", **saved["identity"]} != identity:
            raise ConfigError(f"{path}: was trained with {saved['identity']}, not {identity}; choose another --out")
        projector.load_state_dict(saved["projector"])
        optimizer.load_state_dict(saved["optimizer"])
        first = saved["step"]
    losses: list[float] = []
    started = time.monotonic()
    with progress_line("training") as line:
        line(first, settings.steps)
        for step, chosen in batches(len(examples), settings, first):
            own = [examples[index] for index in chosen]
            tokens = store.tokens(torch.tensor([example.image for example in own])).float()
            loss = loss_of(model, read(tokens, step), own)
            if not math.isfinite(value := loss.item()):
                raise DivergedError("the loss of the answers", step)
            for group in optimizer.param_groups:
                group["lr"] = settings.learning_rate * schedule(step, settings.steps)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
            optimizer.step()
            losses.append(value)
            if (step + 1) % save_every == 0 or step + 1 == settings.steps:
                with atomic_path(path) as temporary:
                    state = {"projector": projector.state_dict(), "optimizer": optimizer.state_dict()}
                    torch.save({**state, "step": step + 1, "identity": identity}, temporary)
            each = (time.monotonic() - started) / len(losses)
            line(step + 1, settings.steps, f"loss {sum(losses[-20:]) / len(losses[-20:]):.3f}, {each:.2f} s/step")
    projector.requires_grad_(False)
    return losses


def schedule(step: int, steps: int) -> float:
    """Return the factor of the learning rate: linear warm-up, then a cosine to 0."""
    rising = max(1, round(WARM_UP * steps))
    return (step + 1) / rising if step < rising else 0.5 * (1 + math.cos(math.pi * (step - rising) / (steps - rising)))


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tower", type=Path, default=Path("runs/public/dinov2-small"))
    parser.add_argument("--language-model", type=Path, default=Path("runs/public/smollm2-135m"))
    parser.add_argument(
        "--tasks", nargs="+", default=["textile:runs/public/textile", "reading"], metavar="NAME[:FOLDER]"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/vlm"), help="(default: %(default)s)")
    parser.add_argument("--steps", type=int, default=4000, help="(default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=4, help="(default: %(default)s)")
    parser.add_argument("--learning-rate", type=float, default=1e-3, help="(default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(default: %(default)s)")
    parser.add_argument("--questions", type=int, help="the first N training questions of each task (default: all)")
    parser.add_argument("--image-size", type=int, help="in px (default: 24 x 24 patches)")
    parser.add_argument(
        "--pooled-first", type=float, default=0.0, metavar="SHARE", help="of the steps, on 6 x 6 averages (default: 0)"
    )
    parser.add_argument(
        "--compressor",
        metavar="NAME",
        help="go on from the trained model for --steps steps on the tokens of this compressor: an export, a sweep, or "
        "SWEEP:GRID:PURPOSE",
    )
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda ... (default: cuda if there is one)")
    args = parser.parse_args(arguments)
    try:
        run(args)
    except (TokconvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Do every step that is missing. Raises TokconvError."""
    if not 0 <= args.pooled_first <= 1:
        raise ConfigError(f"--pooled-first: got {args.pooled_first:g}; it must be from 0 to 1")
    if args.compressor is not None and args.pooled_first:
        raise ConfigError("--pooled-first: is for the first training; leave it out with --compressor")
    device = resolve_device(args.device)
    tasks = [make_task(text, "train").first(args.questions) for text in args.tasks]
    raw, done = args.out / "untrained", args.out / "model"
    if args.compressor is not None and not done.is_dir():
        raise ConfigError(f"--compressor: there is no trained model {done}; run this without --compressor first")
    if not raw.is_dir():
        assemble(args.tower, args.language_model, raw, image_size=args.image_size, seed=args.seed)
    write_images(tasks, args.out / "images")
    store = encode_once(args.tower, args.out / "images", args.out / "store", args.device, args.image_size)
    model = AnsweringModel(raw if args.compressor is None else done, device)
    examples = make_examples(model, tasks, store)
    print(f"{len(examples):,} questions about {len(store.keys):,} images", flush=True)
    settings = Settings(args.steps, args.batch_size, args.learning_rate, args.seed, args.pooled_first)
    if args.compressor is not None:
        adapt(model, store, examples, settings, args)
        return
    train(model, store, examples, settings, args.out, args.save_every)
    with atomic_path(done) as temporary:
        model.model.save_pretrained(temporary)
        model.processor.save_pretrained(temporary)
    print(f"trained model: {done}")


def adapt(
    model: AnsweringModel, store: TokenStore, examples: Sequence[Example], settings: Settings, args: argparse.Namespace
) -> None:
    """Train a trained projector further on compressed tokens, and write the model with its compressor beside it.

    Raises:
        CheckpointError: there is no such compressor.
        ConfigError: it does not fit the model, or the checkpoint was made with other settings.
    """
    folder = find_champion(args.compressor)
    name, compressor = series_of(folder).replace(" ", "-"), load_compressor(folder)
    # Attaching checks that it fits, and moves it to the model.
    attach(model.model, compressor).detach()
    settings = replace(settings, compressor=file_digest(folder / FILES["compressor"]))

    @torch.no_grad()
    def read(tokens: Tensor, step: int) -> Tensor:
        compressed: Tensor = compressor(tokens.to(model.device))
        return compressed

    place = args.out / "adapted" / f"{name}-{compressor.output_grid_size:02d}"
    train(model, store, examples, settings, place.with_name(f"{place.name}.training"), args.save_every, read)
    with attach(model.model, compressor), atomic_path(place) as temporary:
        model.model.save_pretrained(temporary)
        model.processor.save_pretrained(temporary)
    print(f"adapted model: {place}; measure it with: tokconv answers {args.out / 'model'} {place} --tasks ...")


if __name__ == "__main__":
    sys.exit(main())

"""Train a small LLaVA on tasks with exact answers, from stored tokens: its projector, and adapters if asked for.

    python tools/public_weights.py dinov2-small textile smollm2-135m
    python tools/train_vlm.py                      # runs/vlm/model, which tokconv answers reads
    python tools/train_vlm.py --compressor textile:6:plug-in --steps 500     # runs/vlm/adapted/..., the same

Steps, each skipped if it is done: the model is assembled (`tools/assemble_vlm.py`), the training images of the tasks
are written, their tokens are encoded once to a store, and the projector is trained on the answers. The tower and the
language model stay frozen; with `--lora-rank 16`, the language model's attention gets adapters, which are added to its
weights at the end. A checkpoint is written every few steps, and the next run goes on from it: the examples of a step
depend on the seed and the step alone, so a resumed training ends at the same weights.

Where images show digits at known places, the projector starts at the words for them (`tools/vlm_alignment.py`). With
`--part-first 0.8`, the first four fifths of the steps read 96 tokens per image instead of all, at a quarter of the time
(`tools/vlm_packing.py`). `--precision bfloat16` takes less than half the time on a processor that multiplies it
(AVX512-BF16, AMX, a GPU), and saves the model so. With `--compressor`, the trained model is trained further on what a
compressor makes of the tokens, in its own precision. The result is a model of its own with that compressor beside it;
the plain model stays as it is. `trained.safetensors` beside a model holds all that was trained of it; `--trained` makes
the model of it without training, and still encodes the store, which baselines are fitted on. All runs with one `--out`
share images and tokens: another run needs the same `--tasks`, `--questions`, `--layer`, `--image-size` and
`--precision`, or an `--out` of its own.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import torch
from assemble_vlm import assemble
from torch import Tensor, nn
from vlm_examples import (
    IMAGES,
    OPTIONS,
    STORE,
    Example,
    check_options,
    encode_once,
    make_examples,
    options_of,
    write_images,
)
from vlm_training import TRAINED, Settings, apply_trained, read_trained, train

from tokconv.errors import ConfigError, TokconvError, require_extra
from tokconv.exports.answers.methods import series_of
from tokconv.exports.answers.model import AnsweringModel
from tokconv.exports.answers.tasks import make_task
from tokconv.exports.artefact import FILES, load_compressor
from tokconv.exports.champions import find_champion
from tokconv.exports.integrations.attach import attach
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.files import atomic_path, file_digest, read_json_object, write_json

MADE_OF = "made_of.json"
"""The file in a model's folder with the digest of what was trained of it."""
LAYER = 5
"""In the middle of a DINOv2-small, tokens tell digits and textiles apart (`tools/layer_probe.py`)."""
PRECISIONS = ("float32", "bfloat16")
OF_TRAINING = ("steps", "batch_size", "learning_rate", "part_first", "lora_rank", "save_every", "compressor", "start")
"""Options that mean nothing without a training."""


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
    parser.add_argument(
        "--layer", type=int, help=f"the hidden layer of the tower that is read (default: {LAYER}, or that of the model)"
    )
    parser.add_argument("--image-size", type=int, help="in px (default: 24 x 24 patches)")
    parser.add_argument(
        "--part-first", type=float, default=0.0, metavar="SHARE", help="of the steps, on 96 tokens each (default: 0)"
    )
    parser.add_argument(
        "--lora-rank", type=int, default=0, metavar="R", help="of adapters of the language model (default: 0, none)"
    )
    parser.add_argument("--precision", choices=PRECISIONS, default=PRECISIONS[0], help="(default: %(default)s)")
    parser.add_argument(
        "--compressor",
        metavar="NAME",
        help="go on from the trained model for --steps steps on the tokens of this compressor: an export, a sweep, or "
        "SWEEP:GRID:PURPOSE",
    )
    parser.add_argument(
        "--trained",
        type=Path,
        metavar="FILE",
        help="do not train: make the model of what an earlier training wrote",
    )
    parser.add_argument("--start", type=Path, metavar="FILE", help="go on from what an earlier training wrote")
    parser.add_argument("--save-every", type=int, default=20, metavar="STEPS", help="(default: %(default)s)")
    parser.add_argument("--device", help="cpu, cuda ... (default: cuda if there is one)")
    args = parser.parse_args(arguments)
    unused = [f"--{name.replace('_', '-')}" for name in OF_TRAINING if getattr(args, name) != parser.get_default(name)]
    if args.trained is not None and unused:
        parser.error(f"--trained: nothing is trained; leave out {', '.join(unused)}")
    try:
        run(args)
    except (TokconvError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def run(args: argparse.Namespace) -> None:
    """Do every step that is missing. Raises TokconvError."""
    if not 0 <= args.part_first <= 1:
        raise ConfigError(f"--part-first: got {args.part_first:g}; it must be from 0 to 1")
    if args.compressor is not None and args.part_first:
        raise ConfigError("--part-first: is for the first training; leave it out with --compressor")
    if args.compressor is not None and args.start is not None:
        raise ConfigError("--start: is for a model; --compressor goes on from the trained model of --out")
    if args.lora_rank < 0:
        raise ConfigError(f"--lora-rank: got {args.lora_rank}; it must be at least 0")
    if args.lora_rank:
        require_extra("vlm", "peft")
    device = resolve_device(args.device)
    raw, done = args.out / "untrained", args.out / "model"
    if args.compressor is not None and not done.is_dir():
        raise ConfigError(f"--compressor: there is no trained model {done}; run this without --compressor first")
    tasks = [make_task(text, "train").first(args.questions) for text in args.tasks]
    layer = layer_of(args, done)
    options = options_of(tasks, layer, args.image_size, args.precision)
    check_options(args.out, options)
    if args.trained is not None and done.is_dir():
        check_made_of(done, args.trained)
    if not raw.is_dir():
        assemble(args.tower, args.language_model, raw, layer=layer, image_size=args.image_size, seed=args.seed)
    if args.trained is not None and not done.is_dir():
        write_model(raw, args.trained, device, done)
        print(f"trained model: {done}, of {args.trained}")
    write_json(args.out / OPTIONS, options)
    write_images(tasks, args.out / IMAGES)
    store = encode_once(
        args.tower, args.out / IMAGES, args.out / STORE, args.device, layer, args.image_size, args.precision
    )
    if args.trained is not None:
        return
    model = AnsweringModel(raw if args.compressor is None else done, device)
    examples = make_examples(model, tasks, store)
    questions = sum(len(example.questions) for example in examples)
    print(f"{questions:,} questions about {len(examples):,} images", flush=True)
    settings = Settings(
        args.steps,
        args.batch_size,
        args.learning_rate,
        args.seed,
        args.part_first,
        args.lora_rank,
        args.precision,
        layer=layer,
        start="" if args.start is None else file_digest(args.start),
    )
    if args.compressor is not None:
        adapt(model, store, examples, settings, args)
        return
    train(model, store, examples, settings, args.out, args.save_every, start=args.start)
    write_model(raw, args.out / TRAINED, device, done)
    print(f"trained model: {done}")


def layer_of(args: argparse.Namespace, model: Path) -> int:
    """Return the hidden layer that is asked for, else that of a file or of the model that is there.

    Raises:
        ConfigError: the file was trained on another layer than is asked for.
    """
    for file in (args.trained, args.start):
        if file is not None:
            layer = read_trained(file)[0].layer
            if args.layer not in (None, layer):
                raise ConfigError(f"--layer: got {args.layer}; {file} was trained on layer {layer}")
            return layer
    if args.layer is not None:
        return int(args.layer)
    return int(read_json_object(model / "config.json")["vision_feature_layer"]) if model.is_dir() else LAYER


def write_model(
    start: Path, trained: Path, device: torch.device, out: Path, compressor: nn.Module | None = None
) -> None:
    """Write the model that a training made of another one, with a compressor beside it if one is given.

    Raises:
        DataError: the file is not the trained part of this model.
    """
    model = AnsweringModel(start, device)
    apply_trained(model, trained)
    with ExitStack() as stack:
        if compressor is not None:
            stack.enter_context(attach(model.model, compressor))
        temporary = stack.enter_context(atomic_path(out))
        model.model.save_pretrained(temporary)
        model.processor.save_pretrained(temporary)
        write_json(temporary / MADE_OF, {"sha256": file_digest(trained)})


def check_made_of(model: Path, trained: Path) -> None:
    """Raise ConfigError unless a model was made of this file."""
    made_of = model / MADE_OF
    if not made_of.is_file() or read_json_object(made_of).get("sha256") != file_digest(trained):
        raise ConfigError(f"--trained: {model} is there, and was not made of {trained}; choose another --out")


def adapt(
    model: AnsweringModel, store: TokenStore, examples: Sequence[Example], settings: Settings, args: argparse.Namespace
) -> None:
    """Train a trained model further on compressed tokens, and write the model with its compressor beside it.

    Raises:
        CheckpointError: there is no such compressor.
        ConfigError: it does not fit the model, or the checkpoint was made with other settings.
    """
    folder = find_champion(args.compressor)
    name, compressor = series_of(folder).replace(" ", "-"), load_compressor(folder)
    # Attaching checks that it fits, and moves it to the model.
    attach(model.model, compressor).detach()
    own = str(model.precision).removeprefix("torch.")
    settings = replace(settings, precision=own, compressor=file_digest(folder / FILES["compressor"]))

    @torch.no_grad()
    def read(tokens: Tensor) -> Tensor:
        compressed: Tensor = compressor(tokens.to(model.device))
        return compressed

    place = args.out / "adapted" / f"{name}-{compressor.output_grid_size:02d}"
    training = args.out / "adapting" / place.name
    train(model, store, examples, settings, training, args.save_every, read)
    write_model(args.out / "model", training / TRAINED, model.device, place, compressor)
    print(f"adapted model: {place}; measure it with: tokconv answers {args.out / 'model'} {place} --tasks ...")


if __name__ == "__main__":
    sys.exit(main())

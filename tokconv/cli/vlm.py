"""`tokconv fit` and `tokconv merge`: a compressor without training, and a model that contains it.

What they need is imported when they run, so that help and mistakes answer without it.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from tokconv.cli.options import Commands, add_champion, add_device, add_overrides, command
from tokconv.errors import CheckpointError, ConfigError, printable
from tokconv.system.files import local_path

IMAGES = 200
"""Enough for the covariance of windows: each image has hundreds of tokens."""


def add_fit(commands: Commands) -> None:
    parser = command(
        commands,
        "fit",
        "fit a compressor in closed form on a few images (encoded first if they are not), without training",
        "tokconv fit data=folder data.root=photos model.clip.model_name=ViT-L/14-336 "
        "model.compressor.output_grid_size=12 --out my-compressor",
    )
    add_overrides(parser)
    parser.add_argument("--out", type=local_path, required=True, help="the folder to write")
    parser.add_argument(
        "--images",
        type=int,
        default=IMAGES,
        metavar="N",
        help="how many images, unless data.subset is given (default: %(default)s)",
    )
    add_device(parser)


def add_merge(commands: Commands) -> None:
    parser = command(
        commands,
        "merge",
        "write a vision-language model and its compressor as one folder for transformers",
        "tokconv merge llava-hf/llava-1.5-7b-hf my-compressor --out merged",
    )
    parser.add_argument("model", help="a LLaVA or another supported model: a folder, or a name on the hub")
    parser.add_argument("compressor", type=local_path, help="an exported compressor, a sweep, or SWEEP:GRID[:PURPOSE]")
    parser.add_argument("--out", type=local_path, required=True, help="the folder to write")
    add_champion(parser)


def fit(args: argparse.Namespace) -> None:
    """Encode, fit, export. Raises TokconvError."""
    from tokconv.config.overrides import compose
    from tokconv.encoding.console import encode_and_print
    from tokconv.evaluation.figures import FIGURES
    from tokconv.exports.artefact import export, read_config
    from tokconv.exports.champions import is_export
    from tokconv.training.closed_form import CLOSED_FORM
    from tokconv.training.closed_form import fit as fit_start

    if args.out.exists() and not is_export(args.out):
        raise CheckpointError(f"{args.out}: exists and is no exported compressor; choose another place")
    if args.images < 2:
        raise ConfigError(f"--images: got {args.images}; must be at least 2, one to fit on and one to hold out")
    asked = any(text.startswith("data.subset=") for text in args.overrides)
    # What is given comes last, so that it replaces these.
    config = compose([*CLOSED_FORM, *(() if asked else (f"data.subset={args.images}",)), *args.overrides])
    store = encode_and_print(config, device=args.device)
    with tempfile.TemporaryDirectory() as scratch:
        checkpoint = fit_start(config, store, Path(scratch) / "epoch-0000", device=args.device)
        images = len(store.train_indices)
        summary = f"fitted in closed form on {images} images, not trained"
        written = export(checkpoint, args.out, epoch="last", evidence={"summary": summary})
    described, fvu = read_config(written), FIGURES["val/fvu"]
    values = [fvu.text(figures[fvu.name]) for figures in (described["figures"], described["baselines"]["pooling"])]
    print(f"{summary}: {fvu.title} {values[0]}, average pooling {values[1]}")
    print(f"{printable(written)}: load it with tokconv.load_compressor({str(written)!r})")


def merge(args: argparse.Namespace) -> None:
    """Load a model, put a compressor in, write both. Raises CheckpointError, ConfigError, DataError."""
    from tokconv.exports.artefact import load_compressor
    from tokconv.exports.integrations.merged import check_free
    from tokconv.exports.integrations.merged import merge as write_merged
    from tokconv.exports.integrations.pretrained import load_vlm

    # What takes a moment comes first: the model takes minutes.
    check_free(args.out)
    compressor = load_compressor(args.compressor, grid=args.grid, purpose=args.purpose)
    model, processor = load_vlm(args.model)
    out = write_merged(model, compressor, processor, args.out)
    print(f"{printable(out)}: after `import tokconv.hf`, load it with AutoModelForImageTextToText and AutoProcessor")

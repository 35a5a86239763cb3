"""The arguments of the commands that use a trained compressor: `evaluate`, `export`, `dynamic`, `compress`.

As in `arguments.py`, nothing here imports torch.
"""

from __future__ import annotations

import argparse

from tokconv.cli.options import Commands, add_champion, add_device, command, place, refuse
from tokconv.errors import ConfigError
from tokconv.system.files import local_path


def add_evaluate(commands: Commands) -> None:
    parser = command(
        commands,
        "evaluate",
        "evaluate the baselines of a token store, or an exported compressor next to them",
        "tokconv evaluate --baselines runs/stores/my-store --grids 4,6,8,12 --plot plot.png",
        "tokconv evaluate my-compressor runs/stores/my-store",
        "tokconv evaluate demo",
        "tokconv evaluate demo:6:plug-in",
    )
    parser.add_argument(
        "compressor", type=local_path, nargs="?", help="an exported compressor, a sweep, or SWEEP:GRID[:PURPOSE]"
    )
    parser.add_argument(
        "store", type=place, nargs="?", help="a token store of its encoder (default: the one it was trained on)"
    )
    parser.add_argument("--baselines", type=place, metavar="STORE", help="evaluate only the baselines of this store")
    parser.add_argument("--grids", help="with --baselines: output grids (default: those of 4,6,8,12 that fit)")
    parser.add_argument(
        "--plot", type=local_path, help="with --baselines: the PNG (default: STORE/derived/rate_distortion.png)"
    )
    add_champion(parser)
    add_device(parser)
    parser.set_defaults(check=_check_evaluate)


def _check_evaluate(args: argparse.Namespace) -> None:
    if (args.compressor is None) == (args.baselines is None):
        raise ConfigError("name an exported compressor or --baselines STORE, one of the two; see: tokconv evaluate -h")
    if args.baselines is None:
        refuse(args, ("grids", "plot"), "--baselines STORE; an exported compressor has one grid, no plot")
    else:
        refuse(args, ("grid", "purpose"), "a compressor; baselines have --grids")


def add_export(commands: Commands) -> None:
    parser = command(
        commands,
        "export",
        "turn a checkpoint into a folder that tokconv.load_compressor reads",
        "tokconv export runs/train/train-001 --out my-compressor",
        "tokconv export demo --out all-champions",
        "tokconv export demo:6:plug-in --out for-the-server --format onnx",
    )
    parser.add_argument(
        "checkpoint", type=local_path, help="a checkpoint, the directory of a train run, an exported folder, or a sweep"
    )
    parser.add_argument(
        "--out", type=local_path, help="the folder to write; without it, --format adds to an exported folder in place"
    )
    parser.add_argument(
        "--last",
        action="store_true",
        help="of a train run: the last epoch, not the best one (of lowest fvu, or VLM KL)",
    )
    parser.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="also write model.pt2 (torch.export) or model.onnx, compared with the compressor: pt2, onnx",
    )
    add_champion(parser)


def add_dynamic(commands: Commands) -> None:
    parser = command(
        commands,
        "dynamic",
        "fit the predictor that chooses a grid per image among a sweep's compressors (compress --target-fvu)",
        "tokconv dynamic demo",
    )
    parser.add_argument("champions", type=local_path, help="a sweep, or a folder of exported compressors, one per grid")
    parser.add_argument(
        "store", nargs="?", type=place, help="the token store they were trained on (default: it is searched for)"
    )
    add_device(parser)


def add_compress(commands: Commands) -> None:
    parser = command(
        commands,
        "compress",
        "compress images, or their tokens, with an exported compressor",
        "tokconv compress cat.jpg --compressor my-compressor --out tokens.safetensors --picture picture.png",
        "tokconv compress photos --compressor demo:6 --out tokens.safetensors",
        "tokconv compress --tokens features.npy --compressor my-compressor --out tokens.safetensors",
    )
    parser.add_argument(
        "images", nargs="*", type=local_path, help="image files, or folders of them, whose unreadable ones are skipped"
    )
    parser.add_argument(
        "--tokens",
        type=local_path,
        metavar="FILE",
        help="instead of images: their tokens, [images, tokens, channels] in a .npy, .safetensors or .pt file",
    )
    parser.add_argument(
        "--extra-tokens",
        type=int,
        metavar="N",
        help="with --tokens: how many tokens come before an image's patches (default: recognised, as 5 of 581)",
    )
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument(
        "--compressor", type=local_path, help="an exported compressor, SWEEP:GRID[:PURPOSE], or models:/NAME@ALIAS"
    )
    which.add_argument(
        "--compressors",
        type=local_path,
        help="a sweep, or a folder of compressors, to choose from for each image",
    )
    parser.add_argument(
        "--target-fvu",
        type=float,
        help="with --compressors: the largest error of an image (in units of val/fvu; 0 is perfect)",
    )
    parser.add_argument(
        "--confidence", type=float, help="with --compressors: the probability of meeting the target (default: 0.5)"
    )
    parser.add_argument(
        "--encoder", help="the vision tower, a name or a directory, if it has moved since the compressor was exported"
    )
    parser.add_argument(
        "--out", type=local_path, required=True, help="a safetensors file with `tokens`, [B, k*k, C] or [sum of k*k, C]"
    )
    parser.add_argument(
        "--picture",
        type=local_path,
        help="a PNG: the first images, their tokens, compressed grids, reconstructions, errors",
    )
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: %(default)s)")
    add_champion(parser)
    add_device(parser)
    parser.set_defaults(list="images")

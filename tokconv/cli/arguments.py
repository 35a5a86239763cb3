"""The arguments of the command line: commands, options, examples. One function per command.

They stand apart from what the commands do, so that help and mistakes answer without importing torch.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import NoReturn

from tokconv import __version__
from tokconv.cli.answers import add_answers
from tokconv.cli.options import Commands, add_champion, add_device, add_overrides, command, place, refuse
from tokconv.cli.sweep import add_replay, add_report, add_status, add_stop, add_sweep
from tokconv.errors import ConfigError, printable
from tokconv.system.files import local_path

TOUR = """a tour:
  tokconv doctor                                     is everything installed and working?
  tokconv sweep sweeps/demo.yaml                     the demo: four ratios, no download
  tokconv status                                     how far is it? what else ran here?
  tokconv report demo                                its result, as a page
  tokconv encode data=folder data.root=photos        your own images to tokens, once
  tokconv train data=folder data.root=photos         one compressor of these tokens, without Ray
  tokconv export runs/train/train-001 --out mine     a folder for tokconv.load_compressor
  tokconv compress cat.jpg --compressor mine --out tokens.safetensors
  eval "$(tokconv completion bash)"                  commands and keys at the Tab key

every command explains itself: tokconv COMMAND --help
"""


class _Parser(argparse.ArgumentParser):
    """A parser whose complaints quote arguments on one line; a shell's * makes arguments of file names."""

    def error(self, message: str) -> NoReturn:
        super().error(printable(message))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse like parse_args, but accept overrides and images on both sides of an option.

    Raises:
        ConfigError: options that contradict each other; it is found before anything slow is imported.
    """
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    for text in rest:
        if text.startswith("-"):
            hint = "; write overrides without dashes, as in training.epochs=5" if "=" in text else ""
            parser.error(f"unknown option {text}{hint}")
        if "list" not in args:
            parser.error(f"unexpected {text!r}")
        getattr(args, args.list).append(local_path(text) if args.list == "images" else text)
    if "check" in args:
        args.check(args)
    return args


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    parser: argparse.ArgumentParser = _Parser(
        prog="tokconv",
        description="Learned compression of CLIP patch tokens, and the sweep that finds the best compressor.",
        epilog=TOUR,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tokconv {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for add in (
        *(_add_doctor, _add_encode, _add_train, add_sweep, add_status, add_stop, add_report, _add_models),
        *(add_replay, _add_evaluate, add_answers, _add_export, _add_dynamic, _add_compress, _add_completion),
    ):
        add(commands)
    return parser


def _add_doctor(commands: Commands) -> None:
    command(commands, "doctor", "check the installation, part by part", "tokconv doctor")


def _add_encode(commands: Commands) -> None:
    parser = command(
        commands,
        "encode",
        "encode images to a token store, once",
        "tokconv encode data=folder data.root=photos model.clip.model_name=openai/clip-vit-large-patch14-336",
        "tokconv encode data=imagenet data.root=/data/imagenet --encoders 2-16 --gpus-per-encoder 0.5",
        "tokconv encode data=folder data.root=photos --plan --images 1281167 --encoders 8 --gpus-per-encoder 1",
    )
    add_overrides(parser)
    parser.add_argument("--verify", action="store_true", help="also check the hash of every shard")
    add_device(parser)
    pool = parser.add_argument_group(
        "several encoders",
        "on the Ray cluster at RAY_ADDRESS, else on this machine; the store is the same, bit for bit",
    )
    pool.add_argument(
        "--encoders", metavar="N", help="how many; MIN-MAX starts more of them while shards are waiting for one"
    )
    pool.add_argument(
        "--gpus-per-encoder",
        type=float,
        metavar="X",
        help="0.5 puts two on a GPU: one computes while the other reads (default: 1 if the cluster has GPUs, else 0)",
    )
    pool.add_argument(
        "--cpus-per-encoder", type=int, metavar="N", help="shared by an encoder's image readers (default: 1)"
    )
    planning = parser.add_argument_group("planning")
    planning.add_argument(
        "--plan",
        action="store_true",
        help="print what would be written and how long it would take, from a short calibration; write nothing",
    )
    planning.add_argument("--images", type=int, metavar="N", help="plan for this number of images like these")
    planning.add_argument(
        "--images-per-second", type=float, metavar="X", help="plan with this speed per encoder, without a calibration"
    )
    parser.set_defaults(check=_check_encode)


def _check_encode(args: argparse.Namespace) -> None:
    if args.encoders is None:
        refuse(args, ("gpus_per_encoder", "cpus_per_encoder"), "--encoders")
    if not args.plan:
        refuse(args, ("images", "images_per_second"), "--plan")
    if args.encoders is not None and args.device is not None and not args.plan:
        raise ConfigError("--device: not with --encoders; --gpus-per-encoder sets what each runs on, 0 is a CPU")


def _add_train(commands: Commands) -> None:
    parser = command(
        commands,
        "train",
        "train one compressor on a token store (encoded first if it is missing)",
        "tokconv train model.compressor.output_grid_size=8 training.epochs=5",
    )
    add_overrides(parser)
    parser.add_argument("--name", default="train", help="runs go to runs/train/NAME-NNN (default: %(default)s)")
    parser.add_argument("--resume", action="store_true", help="continue the newest run of that name")
    add_device(parser)


def _add_models(commands: Commands) -> None:
    parser = command(
        commands,
        "models",
        "show what every compressor, decoder and critic costs, next to its encoder",
        "tokconv models model.clip.model_name=ViT-L/14-336 --grids 4,6,8,12",
    )
    add_overrides(parser)
    parser.add_argument("--grids", help="output grids (default: those of 4,6,8,12 that fit)")


def _add_evaluate(commands: Commands) -> None:
    parser = command(
        commands,
        "evaluate",
        "evaluate the baselines of a token store, or an exported compressor next to them",
        "tokconv evaluate --baselines runs/stores/my-store --grids 4,6,8,12 --plot plot.png",
        "tokconv evaluate my-compressor runs/stores/my-store",
        "tokconv evaluate runs/sweeps/demo-001 --grid 6 --purpose plug-in",
    )
    parser.add_argument("compressor", type=local_path, nargs="?", help="an exported compressor, or a sweep")
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


def _add_export(commands: Commands) -> None:
    parser = command(
        commands,
        "export",
        "turn a checkpoint into a folder that tokconv.load_compressor reads",
        "tokconv export runs/train/train-001 --out my-compressor",
        "tokconv export runs/sweeps/demo-001 --grid 6 --purpose plug-in --out for-the-server --format onnx",
    )
    parser.add_argument(
        "checkpoint", type=local_path, help="a checkpoint, the directory of a train run, an exported folder, or a sweep"
    )
    parser.add_argument(
        "--out", type=local_path, help="the folder to write; without it, --format adds to an exported folder in place"
    )
    parser.add_argument(
        "--last", action="store_true", help="of a train run: the last epoch instead of the best one (the lowest fvu)"
    )
    parser.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="also write model.pt2 (torch.export) or model.onnx, compared with the compressor: pt2, onnx",
    )
    add_champion(parser)


def _add_dynamic(commands: Commands) -> None:
    parser = command(
        commands,
        "dynamic",
        "fit the predictor that chooses a grid per image among a sweep's compressors (compress --target-fvu)",
        "tokconv dynamic runs/sweeps/demo-001/champions",
    )
    parser.add_argument("champions", type=local_path, help="a folder of exported compressors, one per grid")
    parser.add_argument(
        "store", nargs="?", type=place, help="the token store they were trained on (default: it is searched for)"
    )
    add_device(parser)


def _add_compress(commands: Commands) -> None:
    parser = command(
        commands,
        "compress",
        "compress images, or their tokens, with an exported compressor",
        "tokconv compress cat.jpg --compressor my-compressor --out tokens.safetensors --picture picture.png",
        "tokconv compress --tokens features.npy --compressor my-compressor --out tokens.safetensors",
    )
    parser.add_argument("images", nargs="*", type=local_path, help="image files")
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
    which.add_argument("--compressor", type=local_path, help="an exported compressor, or a sweep")
    which.add_argument(
        "--compressors",
        type=local_path,
        help="a folder of them, such as a sweep's champions, to choose from for each image",
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


def _add_completion(commands: Commands) -> None:
    parser = command(
        commands,
        "completion",
        "print the script that completes tokconv's commands, options and config keys in a shell",
        'eval "$(tokconv completion bash)"',
        "tokconv completion zsh > ~/.zfunc/_tokconv",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))

"""The arguments of the command line: commands, options, examples. One function per command.

They stand apart from what the commands do, so that help and mistakes answer without importing torch.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

from tokconv import __version__
from tokconv.cli.answers import add_answers
from tokconv.cli.compressor_arguments import add_compress, add_dynamic, add_evaluate, add_export
from tokconv.cli.options import Commands, add_device, add_overrides, command, refuse
from tokconv.cli.stores import add_stores
from tokconv.cli.sweep import add_replay, add_report, add_status, add_stop, add_sweep
from tokconv.cli.ui import add_ui
from tokconv.cli.vlm import add_fit, add_merge
from tokconv.errors import ConfigError, printable, suggest
from tokconv.system.files import local_path

TOUR = """a tour:
  tokconv doctor                                     is everything installed and working?
  tokconv sweep sweeps/demo.yaml                     the demo: four ratios, no download
  tokconv status                                     how far is it? which other sweeps ran here?
  tokconv report demo                                its result, as a page
  tokconv ui demo                                    its trials in MLflow; --report: its page, live
  tokconv encode data=folder data.root=photos        your own images to tokens, once
  tokconv stores                                     which tokens are here?
  tokconv train data=folder data.root=photos         one compressor of these tokens, without Ray
  tokconv evaluate demo                              its champions beside every baseline
  tokconv export runs/train/train-001 --out mine     a folder for tokconv.load_compressor
  tokconv compress photos --compressor demo:6 --out tokens.safetensors
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
        ConfigError: there is no such command, or options contradict each other; nothing slow is imported before.
    """
    parser = make_parser()
    words = sys.argv[1:] if argv is None else list(argv)
    (commands,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    if words and not words[0].startswith("-") and words[0] not in commands.choices:
        raise ConfigError(f"there is no command {words[0]!r}; {suggest(words[0], commands.choices)}")
    args, rest = parser.parse_known_args(words)
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
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command")
    for add in (
        *(_add_doctor, _add_encode, add_stores, add_fit, _add_train, add_sweep, add_status, add_stop, add_report),
        *(_add_models, add_replay, add_evaluate, add_answers, add_export, add_dynamic, add_compress, add_merge),
        *(add_ui, _add_completion),
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
    parser.add_argument("--no-mlflow", action="store_true", help="do not write the run to MLflow, if that is installed")
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


def _add_completion(commands: Commands) -> None:
    parser = command(
        commands,
        "completion",
        "print the script that completes commands, options, files and (not in tcsh) config keys in a shell",
        'eval "$(tokconv completion bash)"',
        "tokconv completion zsh > ~/.zfunc/_tokconv",
    )
    parser.add_argument("shell", choices=("bash", "zsh", "tcsh"))

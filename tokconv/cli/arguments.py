"""What the command line takes: commands, options, examples. `tokconv.cli.main` runs them."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tokconv import __version__


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """As parse_args, but overrides and images may also stand on both sides of an option."""
    parser = make_parser()
    args, rest = parser.parse_known_args(argv)
    for text in rest:
        if text.startswith("-"):
            hint = "; write overrides without dashes, as in training.epochs=5" if "=" in text else ""
            parser.error(f"unknown option {text}{hint}")
        if "list" not in args:
            parser.error(f"unexpected {text!r}")
    if rest:
        getattr(args, args.list).extend(Path(text) if args.list == "images" else text for text in rest)
    return args


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="tokconv",
        description="Learned compression of CLIP patch tokens, and the sweep that finds the best compressor.",
        epilog=(
            "a tour:\n"
            "  tokconv doctor                                     is everything installed and working?\n"
            "  tokconv sweep sweeps/demo.yaml                     the demo: four ratios, no download\n"
            "  tokconv status                                     how far is it? what else ran here?\n"
            "  tokconv report demo                                its result, as a page\n"
            "  tokconv encode data=folder data.root=photos        your own images to tokens, once\n"
            "  tokconv train data=folder data.root=photos         one compressor of them, without Ray\n"
            "  tokconv export runs/train/train-001 --out mine     a folder for tokconv.load_compressor\n"
            "  tokconv compress cat.jpg --compressor mine --out tokens.safetensors\n"
            '  eval "$(tokconv completion bash)"                  commands and keys at the Tab key\n'
            "\nevery command explains itself: tokconv COMMAND --help\n"
        ),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"tokconv {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)

    def command(name: str, summary: str, example: str) -> argparse.ArgumentParser:
        return commands.add_parser(
            name,
            help=summary,
            description=summary,
            epilog=f"example:\n  {example}\n",
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )

    command("doctor", "check the installation, part by part", "tokconv doctor")

    encode = command(
        "encode",
        "images to a token store, once",
        "tokconv encode data=folder data.root=photos model.clip.model_name=openai/clip-vit-large-patch14-336\n"
        "  tokconv encode data=imagenet data.root=/data/imagenet --encoders 2-16 --gpus-per-encoder 0.5\n"
        "  tokconv encode data=folder data.root=photos --plan --images 1281167 --encoders 8 --gpus-per-encoder 1",
    )
    _add_overrides(encode)
    encode.add_argument("--verify", action="store_true", help="also check the hash of every shard")
    _add_device(encode)
    pool = encode.add_argument_group(
        "several encoders",
        "on the Ray cluster of RAY_ADDRESS, else on this machine; the same store, bit for bit",
    )
    pool.add_argument(
        "--encoders", metavar="N", help="how many, or MIN-MAX: more are started while shards wait for one"
    )
    pool.add_argument(
        "--gpus-per-encoder",
        type=float,
        metavar="X",
        help="0.5 puts two on a GPU: one computes while the other reads (default: 1 when the cluster has GPUs, else 0)",
    )
    pool.add_argument("--cpus-per-encoder", type=int, metavar="N", help="its image readers share them (default: 1)")
    planning = encode.add_argument_group("planning")
    planning.add_argument(
        "--plan",
        action="store_true",
        help="say what would be written and how long it would take, from a short calibration, and write nothing",
    )
    planning.add_argument("--images", type=int, metavar="N", help="plan for so many images like these")
    planning.add_argument(
        "--images-per-second", type=float, metavar="X", help="plan with this speed of one encoder, do not calibrate"
    )

    train = command(
        "train",
        "train one compressor on a token store (encoded first when missing)",
        "tokconv train model.compressor.output_grid_size=8 training.epochs=5",
    )
    _add_overrides(train)
    train.add_argument("--name", default="train", help="runs go to runs/train/NAME-NNN (default: %(default)s)")
    train.add_argument("--resume", action="store_true", help="go on with the newest run of that name")
    _add_device(train)

    sweep = command("sweep", "search for the best compressor at every ratio", "tokconv sweep sweeps/demo.yaml trials=8")
    sweep.add_argument("spec", type=Path, help="the spec, a YAML file")
    sweep.add_argument("overrides", nargs="*", metavar="key=value", help="laid over the spec: resources.runner=inline")
    sweep.add_argument("--resume", action="store_true", help="go on with the newest run of this spec's name")
    sweep.add_argument(
        "--allow-unproven",
        action="store_true",
        help="also export champions that do not beat every baseline over the confirmation seeds, marked as unproven",
    )
    sweep.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="run it on a Ray cluster, as a job: the address of its dashboard, as http://localhost:8265",
    )
    sweep.add_argument("--no-wait", action="store_true", help="with --submit: do not follow the job's output")
    sweep.add_argument("--plan", action="store_true", help="say what the sweep would take, and start nothing")
    planned = sweep.add_argument_group("with --plan, for an accelerator that is not here")
    planned.add_argument("--tflops", type=float, help="its peak in TFLOP/s (default: time the device at hand)")
    planned.add_argument("--utilisation", type=float, help="share of the peak that training reaches (default: 0.3)")
    planned.add_argument("--gpus", type=float, help="how many there are (default: what the spec's concurrency uses)")
    planned.add_argument("--read-gbs", type=float, help="GB of tokens a worker reads in a second (default: 2)")
    sweep.set_defaults(list="overrides")

    status = command(
        "status",
        "how far a sweep is, or all that ran here",
        "tokconv status\n  tokconv status demo\n  tokconv status demo-001 --json",
    )
    status.add_argument(
        "name", nargs="?", help="a sweep's name, its newest run; or a run's own, as demo-001; or a path"
    )
    status.add_argument("--json", action="store_true", help="for programs")
    stop = command("stop", "stop a sweep that runs on this machine, as Ctrl-C would", "tokconv stop demo")
    stop.add_argument("name", help="as for status")
    stop.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS", help="to wait for its end (default: 180)"
    )
    report = command(
        "report",
        "write a sweep's page, table and plots again, also while it runs",
        "tokconv report demo\n  tokconv report demo-001 --out somewhere",
    )
    report.add_argument("name", help="as for status")
    report.add_argument("--out", type=Path, metavar="DIR", help="where to (default: the sweep's report/)")
    for of_sweeps in (status, stop, report):
        of_sweeps.add_argument("--storage", default="runs", help="the spec's storage (default: %(default)s)")

    models = command(
        "models",
        "what every compressor, decoder and critic costs, beside its encoder",
        "tokconv models model.clip.model_name=ViT-L/14-336 --grids 4,6,8,12",
    )
    _add_overrides(models)
    models.add_argument("--grids", help="output grids (default: 4,6,8,12, those that fit)")

    replay = command(
        "replay",
        "what early stopping would have saved and cost a sweep that ran without it",
        "tokconv replay runs/sweeps/full-001 --min-epochs 1 2 --reduction 2 3\n"
        "  (after: tokconv sweep sweeps/demo.yaml name=full early_stopping=none trials=24)",
    )
    replay.add_argument("sweep", type=Path, help="the directory of a sweep whose trials all ran to their end")
    replay.add_argument("--min-epochs", type=int, nargs="+", default=[2], help="first rung (default: 2)")
    replay.add_argument("--reduction", type=int, nargs="+", default=[3], help="1 in so many goes on (default: 3)")
    replay.add_argument("--orders", type=int, default=200, help="random arrival orders (default: %(default)s)")
    replay.add_argument("--seed", type=int, default=0, help="of the orders (default: %(default)s)")

    evaluate = command(
        "evaluate",
        "judge a token store's baselines, or an exported compressor beside them",
        "tokconv evaluate --baselines runs/stores/my-store --grids 4,6,8,12 --plot plot.png\n"
        "  tokconv evaluate my-compressor runs/stores/my-store",
    )
    evaluate.add_argument("compressor", type=Path, nargs="?", help="an exported compressor")
    evaluate.add_argument(
        "store", type=_place, nargs="?", help="a store of its encoder (default: the one it came from)"
    )
    evaluate.add_argument("--baselines", type=_place, metavar="STORE", help="judge the baselines of this store alone")
    evaluate.add_argument("--grids", help="with --baselines: output grids (default: 4,6,8,12, those that fit)")
    evaluate.add_argument(
        "--plot", type=Path, help="with --baselines: the PNG (default: STORE/derived/rate_distortion.png)"
    )
    _add_device(evaluate)

    export = command(
        "export",
        "turn a checkpoint into a folder that tokconv.load_compressor reads",
        "tokconv export runs/train/train-001 --out my-compressor\n"
        "  tokconv export runs/sweeps/demo-001/champions/grid-06 --out for-the-server --format onnx",
    )
    export.add_argument(
        "checkpoint", type=Path, help="a checkpoint, the directory of a train run, or an exported folder"
    )
    export.add_argument(
        "--out", type=Path, help="the folder to write; an exported folder may stay where it is: --format adds to it"
    )
    export.add_argument(
        "--format",
        nargs="+",
        default=[],
        metavar="FORMAT",
        help="also model.pt2 (torch.export) and model.onnx, each compared with the compressor: pt2, onnx",
    )

    dynamic = command(
        "dynamic",
        "fit what chooses a grid per image, for the compressors of a sweep (compress --target-fvu)",
        "tokconv dynamic runs/sweeps/demo-001/champions",
    )
    dynamic.add_argument("champions", type=Path, help="a folder of exported compressors, one a grid")
    dynamic.add_argument(
        "store", nargs="?", type=_place, help="the token store they were trained on (default: found below runs/stores)"
    )
    _add_device(dynamic)

    compress = command(
        "compress",
        "compress the tokens of images with an exported compressor",
        "tokconv compress cat.jpg --compressor my-compressor --out tokens.safetensors --picture picture.png",
    )
    compress.add_argument("images", nargs="+", type=Path, help="image files")
    which = compress.add_mutually_exclusive_group(required=True)
    which.add_argument("--compressor", type=Path, help="an exported compressor")
    which.add_argument(
        "--compressors", type=Path, help="a folder of them, as a sweep's champions, to choose from for every image"
    )
    compress.add_argument(
        "--target-fvu",
        type=float,
        help="with --compressors: the error an image may have (as val/fvu; 0 is perfect)",
    )
    compress.add_argument(
        "--confidence", type=float, help="with --compressors: the probability of meeting the target (default: 0.5)"
    )
    compress.add_argument(
        "--encoder", help="the vision tower, when it is elsewhere than at export: a name or directory"
    )
    compress.add_argument(
        "--out", type=Path, required=True, help="a safetensors file with `tokens`, [B, k*k, C] or [sum of k*k, C]"
    )
    compress.add_argument(
        "--picture", type=Path, help="a PNG: the first images, their tokens, compressed grids, reconstructions, errors"
    )
    compress.add_argument("--batch-size", type=int, default=32, help="images at a time (default: %(default)s)")
    _add_device(compress)
    compress.set_defaults(list="images")

    completion = command(
        "completion",
        "print what makes a shell complete tokconv's commands, options and config keys",
        'eval "$(tokconv completion bash)"\n  tokconv completion zsh > ~/.zfunc/_tokconv',
    )
    completion.add_argument("shell", choices=("bash", "zsh", "tcsh"))
    return parser


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="config overrides, as in training.epochs=5")
    parser.set_defaults(list="overrides")


def _add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda when there is one)")


def _place(text: str) -> Path | str:
    """A store, by its directory or its URL: a path would lose a slash of it."""
    return text if "://" in text else Path(text)

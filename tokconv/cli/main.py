"""The command line. Every command prints what it did, exits 0; 2 with one sentence when the user can fix it; 130 when
interrupted."""

from __future__ import annotations

import argparse
import errno
import os
import signal
import sys
from collections.abc import Callable, Sequence

from tokconv.cli.arguments import parse
from tokconv.errors import ConfigError, TokconvError, import_extra

SWEEP_MODULES = ("ray", "optuna", "mlflow", "pandas", "rich", "matplotlib.figure", "scipy.stats")
"""What a sweep imports sooner or later; one that is missing is told before anything starts."""
PLANNED = ("tflops", "utilisation", "gpus", "read_gbs")
"""Options that describe an accelerator to a plan."""
UNUSABLE = (
    *(errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS),
    *(errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG),
)
"""What is wrong with a path or its disk, not with tokconv."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; the exit code comes back."""
    args = parse(argv)
    try:
        return int(COMMANDS[args.command](args) or 0)
    except TokconvError as error:
        print(f"tokconv: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        # Whoever read the output, such as head, has had enough. What Python would still flush goes nowhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if error.errno not in UNUSABLE:
            raise
        print(f"tokconv: {error.filename or 'a file'}: cannot be written or read ({error.strerror})", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("tokconv: interrupted", file=sys.stderr)
        return 130


def _doctor(args: argparse.Namespace) -> int:
    from tokconv.cli.doctor import examine

    return examine()


def _encode(args: argparse.Namespace) -> None:
    # What contradicts itself first: it is said without waiting for torch.
    for option in ("gpus_per_encoder", "cpus_per_encoder"):
        if args.encoders is None and getattr(args, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')}: goes with --encoders")
    for option in ("images", "images_per_second"):
        if not args.plan and getattr(args, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')}: goes with --plan")
    if args.encoders is not None and args.device is not None and not args.plan:
        raise ConfigError("--device: not with --encoders; --gpus-per-encoder says what each runs on, 0 is a CPU")
    from tokconv.cli.commands import encode
    from tokconv.encoding.plan import parse_encoders

    encoders = None
    if args.encoders is not None:
        cpus = 1 if args.cpus_per_encoder is None else args.cpus_per_encoder
        encoders = parse_encoders(args.encoders, gpus=args.gpus_per_encoder, cpus=cpus)
    encode(
        args.overrides,
        plan_only=args.plan,
        verify=args.verify,
        device=args.device,
        encoders=encoders,
        images=args.images,
        images_per_second=args.images_per_second,
    )


def _train(args: argparse.Namespace) -> None:
    from tokconv.cli.commands import train

    train(args.overrides, name=args.name, resume=args.resume, device=args.device)


def _sweep(args: argparse.Namespace) -> int:
    from tokconv.sweep.spec.file import load_spec

    if args.no_wait and args.submit is None:
        raise ConfigError("--no-wait: goes with --submit ADDRESS")
    # The spec first: what is wrong with it is said in a second, without waiting for Ray.
    spec = load_spec(args.spec, args.overrides)
    if args.submit is not None:
        from tokconv.sweep.jobs import submit

        import_extra("ray", "sweep")
        options = [flag for flag, on in (("--resume", args.resume), ("--allow-unproven", args.allow_unproven)) if on]
        return submit(args.submit, args.spec, spec, args.overrides, options=options, wait=not args.no_wait)
    for module in SWEEP_MODULES:
        import_extra(module, "sweep")
    given = {name: getattr(args, name) for name in PLANNED if getattr(args, name) is not None}
    if args.plan:
        from tokconv.sweep.plan.plan import Accelerator, plan_sweep
        from tokconv.sweep.plan.text import plan_text

        print(plan_text(plan_sweep(spec, Accelerator(**given))))
        return 0
    if given:
        raise ConfigError(f"--{next(iter(given)).replace('_', '-')}: goes with --plan")
    from tokconv.sweep.run import run_sweep

    # `ray job stop` and schedulers ask by SIGTERM for what Ctrl-C asks for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_sweep(spec, resume=args.resume, allow_unproven=args.allow_unproven)
    return 0


def _status(args: argparse.Namespace) -> None:
    from tokconv.sweep.report.status import print_status

    print_status(args.name, storage=args.storage, as_json=args.json)


def _stop(args: argparse.Namespace) -> None:
    from tokconv.sweep.report.status import stop_sweep

    stop_sweep(args.name, storage=args.storage, timeout=args.timeout)


def _report(args: argparse.Namespace) -> None:
    from tokconv.sweep.report.status import write_report

    write_report(args.name, storage=args.storage, out=args.out)


def _completion(args: argparse.Namespace) -> None:
    from tokconv.cli.completion import completion

    print(completion(args.shell))


def _models(args: argparse.Namespace) -> None:
    from tokconv.cli.models import models

    models(args.overrides, grids=args.grids)


def _replay(args: argparse.Namespace) -> None:
    import_extra("ray", "sweep")
    from tokconv.sweep.search.replay import print_replay

    print_replay(args.sweep, min_epochs=args.min_epochs, reductions=args.reduction, orders=args.orders, seed=args.seed)


def _evaluate(args: argparse.Namespace) -> None:
    # What contradicts itself first: it is said without waiting for torch.
    if (args.compressor is None) == (args.baselines is None):
        raise ConfigError("name an exported compressor or --baselines STORE, one of the two; see: tokconv evaluate -h")
    for option in ("grids", "plot"):
        if args.baselines is None and getattr(args, option) is not None:
            raise ConfigError(f"--{option}: goes with --baselines STORE; an exported compressor has one grid, no plot")
    from tokconv.cli.evaluate import evaluate_baselines, evaluate_compressor

    if args.baselines is not None:
        evaluate_baselines(args.baselines, grids=args.grids, plot=args.plot)
    else:
        evaluate_compressor(args.compressor, args.store, device=args.device)


def _export(args: argparse.Namespace) -> None:
    from tokconv.cli.commands import export

    export(args.checkpoint, args.out, formats=args.format)


def _dynamic(args: argparse.Namespace) -> None:
    from tokconv.cli.compress import fit_champions

    fit_champions(args.champions, args.store, device=args.device)


def _compress(args: argparse.Namespace) -> None:
    from tokconv.cli.compress import compress

    compress(
        args.images,
        compressor=args.compressor,
        compressors=args.compressors,
        target_fvu=args.target_fvu,
        confidence=args.confidence,
        encoder=args.encoder,
        out=args.out,
        picture=args.picture,
        batch_size=args.batch_size,
        device=args.device,
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], int | None]] = {
    "doctor": _doctor,
    "encode": _encode,
    "train": _train,
    "sweep": _sweep,
    "status": _status,
    "stop": _stop,
    "report": _report,
    "models": _models,
    "replay": _replay,
    "evaluate": _evaluate,
    "export": _export,
    "dynamic": _dynamic,
    "compress": _compress,
    "completion": _completion,
}


if __name__ == "__main__":
    sys.exit(main())

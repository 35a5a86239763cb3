"""`tokconv sweep`, `status`, `stop`, `report` and `replay`: the commands of sweeps."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from tokconv.cli.options import Commands, add_overrides, command, refuse
from tokconv.errors import ConfigError, import_extra
from tokconv.system.files import local_path

SWEEP_MODULES = ("ray", "optuna", "mlflow", "pandas", "rich", "matplotlib.figure", "scipy.special")
"""What a sweep imports sooner or later; a missing one is reported before anything starts."""
PLANNED = ("tflops", "utilisation", "gpus", "read_gbs")
"""Options that describe an accelerator to a plan."""


def add_sweep(commands: Commands) -> None:
    parser = command(
        commands,
        "sweep",
        "search for the best compressor at every ratio",
        "tokconv sweep sweeps/demo.yaml trials=8",
    )
    parser.add_argument("spec", type=local_path, help="the spec, a YAML file")
    add_overrides(parser, "replace keys of the spec, as in resources.runner=inline")
    parser.add_argument("--resume", action="store_true", help="continue the newest run of this spec's name")
    parser.add_argument(
        "--allow-unproven",
        action="store_true",
        help="also export champions that do not beat every baseline over the confirmation seeds, marked as unproven",
    )
    parser.add_argument(
        "--submit",
        metavar="ADDRESS",
        help="run it as a job on a Ray cluster: the address of its dashboard, as in http://localhost:8265",
    )
    parser.add_argument("--no-wait", action="store_true", help="with --submit: do not follow the job's output")
    parser.add_argument("--plan", action="store_true", help="print what the sweep would take, and start nothing")
    planned = parser.add_argument_group("with --plan, for an accelerator that is not here")
    planned.add_argument("--tflops", type=float, help="its peak in TFLOP/s (default: this machine's device is timed)")
    planned.add_argument("--utilisation", type=float, help="share of the peak that training reaches (default: 0.3)")
    planned.add_argument(
        "--gpus", type=float, help="how many there are (default: as many as the spec's concurrency uses)"
    )
    planned.add_argument("--read-gbs", type=float, help="GB of tokens that a worker reads per second (default: 2)")


def add_status(commands: Commands) -> None:
    parser = command(
        commands,
        "status",
        "show how far a sweep is, or every sweep that ran here",
        "tokconv status",
        "tokconv status demo",
        "tokconv status demo-001 --json",
    )
    parser.add_argument(
        "name", nargs="?", help="a spec's name, for its newest run; a run's own name, as demo-001; or a path"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    _add_storage(parser)


def add_stop(commands: Commands) -> None:
    parser = command(commands, "stop", "stop a sweep that runs on this machine, as Ctrl-C would", "tokconv stop demo")
    parser.add_argument("name", help="as for status")
    parser.add_argument(
        "--timeout", type=float, default=180.0, metavar="SECONDS", help="how long to wait for its end (default: 180)"
    )
    _add_storage(parser)


def add_report(commands: Commands) -> None:
    parser = command(
        commands,
        "report",
        "write a sweep's page, table and plots again, even while it runs",
        "tokconv report demo",
        "tokconv report demo-001 --out somewhere",
    )
    parser.add_argument("name", help="as for status")
    parser.add_argument(
        "--out", type=local_path, metavar="DIR", help="where to write it (default: the sweep's report/)"
    )
    _add_storage(parser)


def add_replay(commands: Commands) -> None:
    parser = command(
        commands,
        "replay",
        "show what early stopping would have saved, and cost, a sweep that ran without it",
        "tokconv replay runs/sweeps/full-001 --min-epochs 1 2 --reduction 2 3",
        "(after: tokconv sweep sweeps/demo.yaml name=full early_stopping=none trials=24)",
    )
    parser.add_argument("sweep", type=local_path, help="the directory of a sweep whose trials all ran to their end")
    parser.add_argument("--min-epochs", type=int, nargs="+", default=[2], help="the first rung (default: 2)")
    parser.add_argument(
        "--reduction", type=int, nargs="+", default=[3], metavar="N", help="1 in N trials goes on (default: 3)"
    )
    parser.add_argument("--orders", type=int, default=200, help="random arrival orders (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the orders (default: %(default)s)")


def _add_storage(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--storage", default="runs", help="the spec's storage (default: %(default)s)")


def sweep(args: argparse.Namespace) -> int:
    """Run, submit or plan a sweep; return the exit code. Raises TokconvError."""
    from tokconv.sweep.spec.file import load_spec

    if args.no_wait and args.submit is None:
        raise ConfigError("--no-wait: goes with --submit ADDRESS")
    if not args.plan:
        refuse(args, PLANNED, "--plan")
    elif args.submit is not None:
        raise ConfigError("--plan: starts nothing, and --submit starts a job; leave out one of the two")
    # The spec comes first: a mistake in it is reported within a second, without waiting for Ray.
    spec = load_spec(args.spec, args.overrides)
    if args.submit is not None:
        from tokconv.sweep.jobs import submit

        import_extra("ray", "sweep")
        options = [flag for flag, on in (("--resume", args.resume), ("--allow-unproven", args.allow_unproven)) if on]
        return submit(args.submit, args.spec, spec, args.overrides, options=options, wait=not args.no_wait)
    for module in SWEEP_MODULES:
        import_extra(module, "sweep")
    if args.plan:
        from tokconv.sweep.plan.accelerator import Accelerator
        from tokconv.sweep.plan.plan import plan_sweep
        from tokconv.sweep.plan.text import plan_text

        given = {name: getattr(args, name) for name in PLANNED if getattr(args, name) is not None}
        print(plan_text(plan_sweep(spec, Accelerator(**given))))
        return 0
    from tokconv.sweep.run import run_sweep

    # `ray job stop` and schedulers send SIGTERM, which stops a sweep as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    run_sweep(spec, resume=args.resume, allow_unproven=args.allow_unproven)
    return 0


def status(args: argparse.Namespace) -> None:
    """Print how far a sweep is, or every sweep that ran here. Raises SweepError."""
    from tokconv.sweep.report.status import print_status

    print_status(args.name, storage=args.storage, as_json=args.json)


def stop(args: argparse.Namespace) -> None:
    """Stop a sweep on this machine and wait for its end. Raises ConfigError, SweepError."""
    from tokconv.sweep.report.status import stop_sweep

    if not args.timeout >= 0:
        raise ConfigError(f"--timeout: got {args.timeout:g}; must be a number of seconds, at least 0")
    stop_sweep(args.name, storage=args.storage, timeout=args.timeout)


def report(args: argparse.Namespace) -> None:
    """Write a sweep's report again, and repair MLflow's places if the sweep was moved. Raises SweepError."""
    from tokconv.sweep.report.status import write_report
    from tokconv.sweep.tracking.mlflow_moved import repair_default

    # Optuna imports scikit-learn, which takes 1.6 s, for a kind of importance that the page does not show.
    with _hidden("sklearn"):
        directory = write_report(args.name, storage=args.storage, out=args.out)
    if repaired := repair_default(directory.parents[1]):
        print(repaired)


@contextmanager
def _hidden(module: str) -> Iterator[None]:
    """Make the import of an optional module of another library fail, as if it were not installed, unless it is loaded.

    This lasts for the block; what was imported in it stays without the module, so it is for a process that ends soon.
    """
    hides = module not in sys.modules
    if hides:
        sys.modules[module] = None  # type: ignore[assignment]  # Python's own way to say so.
    try:
        yield
    finally:
        if hides:
            del sys.modules[module]


def replay(args: argparse.Namespace) -> None:
    """Print what early stopping would have saved and cost. Raises SweepError."""
    import_extra("ray", "sweep")
    from tokconv.sweep.search.replay import print_replay

    print_replay(args.sweep, min_epochs=args.min_epochs, reductions=args.reduction, orders=args.orders, seed=args.seed)

"""`tokconv train`: one compressor, without Ray."""

from __future__ import annotations

import argparse
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from tokconv.cli.train_tracking import track
from tokconv.config.keys import GROUPS, get, to_dict
from tokconv.config.overrides import compose, from_dict, keys_of, parse, with_values
from tokconv.config.sources import MAY_CHANGE
from tokconv.config.tree import Config
from tokconv.encoding.console import encode_and_print
from tokconv.encoding.images import describe_tokens
from tokconv.errors import CheckpointError, ConfigError, DivergedError, printable
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.registry import SHOWN_DURING_TRAINING, title_of
from tokconv.evaluation.curve import write_curve
from tokconv.evaluation.epochs import LOWEST_FVU, LOWEST_KL, run_rule
from tokconv.evaluation.figure import TRAIN, Figure
from tokconv.evaluation.figures import FIGURES, shown_in
from tokconv.evaluation.protocol import check_resumable, other_protocol
from tokconv.evaluation.purposes import FIDELITY, PLUG_IN, PURPOSES
from tokconv.exports.answers.last_epoch import open_teacher
from tokconv.models.windows import check_output_grid, compression_ratio
from tokconv.store.reader import TokenStore
from tokconv.system.devices import resolve_device
from tokconv.system.files import NAME, NAME_RULE, new_numbered, newest_numbered, read_json_object, write_json
from tokconv.system.terminal import ProgressLine, progress_line
from tokconv.training.checkpoint import load_state
from tokconv.training.loop import check_store, run_trial
from tokconv.training.networks import OWN_STARTS, shown_baselines
from tokconv.training.runtime import LocalRuntime, Metrics, checkpoints_of

RUNS = Path("runs/train")
COLUMN = 13
"""Width of a figure's column, more than its title."""


def run(args: argparse.Namespace) -> None:
    """Train a new run, or resume the newest one of a name. Raises TokconvError."""
    if NAME.fullmatch(args.name) is None:
        raise ConfigError(f"--name: got {args.name!r}; {NAME_RULE}")
    run_dir = _newest_run(args.name) if args.resume else None
    config = compose(args.overrides) if run_dir is None else _resumed_config(run_dir, args.overrides)
    trained_on = None
    if run_dir is not None and (saved := checkpoints_of(run_dir)):
        state = load_state(saved[-1])
        if state["history"][-1]["epoch"] >= config.training.epochs:
            _print_finished(run_dir, state)
            _conclude(run_dir, "finished", {}, tracks=not args.no_mlflow)
            return
        check_resumable(state, run_dir)
        trained_on = state["store_fingerprint"]
    times: dict[int, int] = {}
    conclude = partial(_conclude, times=times, tracks=not args.no_mlflow)
    grid = config.model.compressor.output_grid_size
    if trained_on is None:
        # Before anything is encoded; a run that goes on needs neither images nor tower, only its store.
        check_output_grid(grid, describe_tokens(config).token_grid)
    try:
        store = encode_and_print(config, device=args.device, resumed=trained_on)
        check_store(config, store)
        run_dir = run_dir or new_numbered(RUNS, args.name)
        if not (run_dir / "config.json").exists():
            write_json(run_dir / "config.json", to_dict(config))
        tokens = f"{store.num_tokens} to {grid**2} tokens ({compression_ratio(store.token_grid, grid):.3g}x fewer)"
        print(f"run: {printable(run_dir)} on {resolve_device(args.device)}, {tokens}")
        with _alone(run_dir):
            _train(config, store, run_dir, args.device, args.resume, times)
    except KeyboardInterrupt:
        name = "" if args.name == "train" else f" --name {args.name}"
        how = f" --resume{name}" if run_dir is not None else f"{name} {shlex.join(args.overrides)}".rstrip()
        print(f"stopped; go on with: tokconv train{printable(how)}", flush=True)
        if times and run_dir is not None:
            conclude(run_dir, "interrupted", quiet=True)
        raise
    except DivergedError:
        if run_dir is not None and checkpoints_of(run_dir):
            conclude(run_dir, "failed")
            print()
        raise
    conclude(run_dir, "finished")


def _train(
    config: Config, store: TokenStore, run_dir: Path, device: str | None, resume: bool, times: dict[int, int]
) -> None:
    """Train, and print the figures of every epoch; `times` takes when each was reported, in milliseconds since 1970."""
    grid, shown = config.model.compressor.output_grid_size, shown_baselines(config)
    teacher = open_teacher(config, store, resolve_device(device))
    if teacher is not None:
        teacher.prepare_and_print()
    with progress_line("baselines") as line:
        measured = baseline_figures(store, grid, shown, full=False, steps=line)
    if teacher is not None:
        measured = {name: {**row, **teacher.judge.baseline(grid, name)} for name, row in measured.items()}
    print(f"\nheld-out figures\n{_legend(measured['pooling'])}\n\n{_table_head(measured)}", flush=True)
    steps = 0
    with progress_line("training") as line, ExitStack() as bars:
        bar: ProgressLine | None = None

        def progress(done: int, total: int) -> None:
            nonlocal steps
            steps = total
            if done < total:
                line(done, total)

        def measuring(done: int, total: int, what: str) -> None:
            nonlocal bar
            if bar is None or done == 0:
                line.close()
                # Not before: it also says that its work goes on.
                bar = bars.enter_context(progress_line("baselines"))
            bar(done, total, what)

        def report(figures: Metrics, _: Path | None) -> None:
            times[int(figures["epoch"])] = int(time.time() * 1000)
            line.message(_epoch_row(figures, measured))

        runtime = LocalRuntime(
            run_dir,
            device=device,
            on_report=report,
            on_progress=progress,
            resume=resume,
        )
        rule, judge = (LOWEST_FVU, None) if teacher is None else (LOWEST_KL, teacher.judge)
        run_trial(config, store, runtime, (rule,), baseline_steps=measuring, judge=judge, teacher=teacher)
        final = {name: {**measured[name], **row} for name, row in baseline_figures(store, grid, shown).items()}
        if final != measured:
            for row in _baseline_rows(final, measured):
                line.message(row)
        # The bar is completed below the last epoch's figures, not above them.
        line(steps, steps)


@contextmanager
def _alone(run_dir: Path) -> Iterator[None]:
    """Hold the lock of a run while it is trained: --resume also finds one that is at work. Raises CheckpointError."""
    try:
        with FileLock(run_dir / ".lock", timeout=0):
            yield
    except Timeout as error:
        raise CheckpointError(f"{run_dir}: another process trains this run; wait for it, or end it") from error


def _newest_run(name: str) -> Path:
    run_dir = newest_numbered(RUNS, name)
    if run_dir is None:
        raise CheckpointError(f"{RUNS}: holds no run of {name!r} to resume; start it without --resume")
    return run_dir


def _resumed_config(run_dir: Path, overrides: Sequence[str]) -> Config:
    """Return the config that a run was started with, changed only in what `MAY_CHANGE` lists."""
    try:
        saved = read_json_object(run_dir / "config.json")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run_dir / 'config.json'}: missing or damaged; start a new run") from error
    config = from_dict(saved)
    asked = compose(overrides)
    changed: dict[str, Any] = {}
    for leaf in _leaves(overrides):
        old, new = get(config, leaf), get(asked, leaf)
        if old == new:
            continue
        if leaf not in MAY_CHANGE:
            raise CheckpointError(
                f"{run_dir}: was started with {leaf}={old}, not {new}; leave it out, or start a new run"
            )
        changed[leaf] = new
    return with_values(config, changed)


def _leaves(overrides: Sequence[str]) -> list[str]:
    """Return the dotted keys that overrides ask for."""
    found: list[str] = []
    for key, value in parse(overrides):
        found += ["data.source"] if key == "data" else keys_of(key, value) if key in GROUPS else [key]
    return found


def _print_finished(run_dir: Path, state: Mapping[str, Any]) -> None:
    print(f"{printable(run_dir)}: finished already, nothing is left to train")
    if difference := other_protocol(state):
        print(f"note: {printable(difference)}")
    last = _epoch_row(state["history"][-1], state["baselines"])
    print(f"\n{_table_head(state['baselines'])}\n{last}")


def _conclude(run_dir: Path, ended: str, times: Mapping[int, int], *, tracks: bool, quiet: bool = False) -> None:
    """Write the curve of a run that has finished, was interrupted or has failed, say what to do next, and track it.

    Args:
        quiet: say nothing of what a run that has ended is good for.
    """
    newest = checkpoints_of(run_dir)[-1]
    state = load_state(newest)
    curve = write_curve(state["history"], state["baselines"], run_dir)
    judged = _judged(state)
    if not quiet:
        print(_next_step(run_dir, judged, curve, newest), flush=True)
    if tracks and (said := track(run_dir, state, ended, times, judged)):
        print(said)


def _judged(state: Mapping[str, Any]) -> str:
    """Return which epoch of a run is the best one, and whether it beats the best closed form."""
    rows = state.get("best", {})
    rule = run_rule(rows)
    best = rows.get(rule.figure, state["history"][-1])
    compared = PURPOSES[FIDELITY if rule == LOWEST_FVU else PLUG_IN].compared(best, state["baselines"])
    start = ", the closed form that the run starts at" if not best["epoch"] else ""
    return f"best epoch: {best['epoch']:.0f} of {best['epochs']:.0f}{start}\n{compared}"


def _next_step(run_dir: Path, judged: str, curve: Sequence[Path], newest: Path) -> str:
    """Return what came out of a run, where it is, and how to export it."""
    return (
        f"\n{judged}\ncurve:      {', '.join(printable(path) for path in curve)}\n"
        f"checkpoint: {printable(newest)}\nexport it:  tokconv export {printable(run_dir)} --out my-compressor"
    )


def _legend(like: Metrics) -> str:
    """Explain the columns, with the floor of each figure that has one."""
    shown = _columns(like)
    width = max(len(figure.title) for figure in shown)
    floors = [f", at best about {figure.text(like[figure.floor])}" if figure.floor in like else "" for figure in shown]
    return "\n".join(
        f"  {figure.title:<{width}}  {figure.explanation}{floor}" for figure, floor in zip(shown, floors, strict=True)
    )


def _table_head(measured: Mapping[str, Metrics]) -> str:
    """Return the header and the rows of the baselines that stand above the epochs."""
    titles = (figure.title.rjust(COLUMN) for figure in _columns(measured["pooling"]))
    return "\n".join([f"{'':<14}{''.join(titles)}", *_baseline_rows(measured, measured)])


def _baseline_rows(figures: Mapping[str, Metrics], measured: Mapping[str, Metrics]) -> list[str]:
    shown = (name for name in figures if name in (*SHOWN_DURING_TRAINING, *OWN_STARTS.values()))
    return [_row(title_of(name), figures[name], measured) for name in shown]


def _row(title: str, figures: Metrics, measured: Mapping[str, Metrics]) -> str:
    cells = (figure.text(figures.get(figure.name)).rjust(COLUMN) for figure in _columns(measured["pooling"]))
    return f"{title:<14}{''.join(cells)}".rstrip()


def _columns(pooling: Metrics) -> list[Figure]:
    """Return the figures that the last epoch has; the others, and baselines before it, lack some of them."""
    met = {figure.needs for figure in FIGURES.values() if figure.name in pooling}
    return [
        figure
        for figure in shown_in(TRAIN)
        if figure.name in pooling or (not figure.every_epoch and figure.needs in met)
    ]


def _epoch_row(figures: Metrics, measured: Mapping[str, Metrics]) -> str:
    epochs = f"{figures['epochs']:.0f}"
    return _row(f"epoch {figures['epoch']:{len(epochs)}.0f}/{epochs}", figures, measured)

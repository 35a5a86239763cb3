"""Measures what a sweep costs its controller, by simulating thousands of trials on hundreds of GPUs in minutes.

Search, early stopping, record, display, judgement, report and MLflow delivery run their real code and are timed; trials
are a formula and the clock is virtual (`simulation.py`, `surrogate.py`).

    python tools/simulate_sweep.py --trials 10000 --slots 256                  # the table of docs/scaling.md
    python tools/simulate_sweep.py --trials 200 --slots 16 --set sampler.kind=random
    python tools/simulate_sweep.py --spec small.yaml --real                    # also runs the sweep, and compares

The table shows milliseconds of processor time per trial, over the last tenth before each mark, so that growth shows.
"With waits" is wall time, which includes waiting for the disk.
"""

from __future__ import annotations

import argparse
import shutil
import sqlite3
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

from simulation import PARTS, TOKEN_GRID, Ledger, Simulation, memory_mb, open_search
from surrogate import Surrogate

from tokconv.sweep.judge.confirmations import missing_confirmations
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record, read_events
from tokconv.sweep.record.remote import Root
from tokconv.sweep.report.results import write_results
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.sweep.tracking.mlflow_writer import MlflowWriter

SPEC = Path(__file__).parents[1] / "sweeps" / "rate_distortion.yaml"
MARKS = (500, 1000, 2000, 5000, 10000)
IN_DRIVER = [part for part in PARTS if part != "MLflow"]
TABLES = ("runs", "params", "metrics", "latest_metrics", "tags")


def main() -> None:
    args = _arguments().parse_args()
    overrides = [*args.set, f"storage={args.out or tempfile.mkdtemp(prefix='tokconv-simulation-')}"]
    overrides += [f"trials={args.trials}"] if args.trials else []
    overrides += [f"concurrency={args.slots}"] if args.slots else []
    spec = load_spec(args.spec, overrides).with_objectives(())
    directory = SweepDirectory(args.resume) if args.resume else Root(Path(str(spec.storage))).new(spec.name)
    simulation = simulate(spec, directory, minutes=args.minutes, seed=args.seed)
    after_the_search(simulation, mlflow=args.mlflow)
    if args.real:
        compare(simulation.ledger, spec)


def simulate(spec: Spec, directory: SweepDirectory, *, minutes: float, seed: int) -> Simulation:
    """Run the search of a spec on the virtual clock and print what it cost the controller."""
    surrogate = Surrogate(spec.search, TOKEN_GRID, spec.base_config().training.epochs, minutes, seed)
    ledger = Ledger()
    simulation = Simulation(spec, directory, surrogate, ledger=ledger)
    before = simulation.before
    marks = sorted({spec.trials, *(mark for mark in MARKS if before < mark < spec.trials)})
    starts = {mark: max(before, mark - max(1, mark // 10)) for mark in marks}
    simulation.wanted = [*marks, *starts.values()]
    print(f"{spec.trials} trials of {surrogate.epochs} epochs, {before} of them before, {spec.concurrency} at a time")
    print(f"sampler {spec.sampler.kind}, files in {directory.path}\n", flush=True)
    wall = time.perf_counter()
    simulation.run()
    wall = time.perf_counter() - wall
    noted = {mark.trials: mark for mark in simulation.marks}
    print("| trials | " + " | ".join(IN_DRIVER) + " | all | all, with waits | peak memory, MB |")
    print("|---:|" + "---:|" * (len(IN_DRIVER) + 3))
    for mark in marks:
        spent, count = noted[mark].ledger.since(noted[starts[mark]].ledger), mark - starts[mark]
        # The last trials ask for no successors, so suggestions are averaged over their own number.
        per = {part: (spent.calls[part] or 1) if part == "suggest" else count for part in IN_DRIVER}
        cells = [1e3 * spent.seconds[part] / per[part] for part in IN_DRIVER]
        waited = sum(1e3 * spent.wall[part] / per[part] for part in IN_DRIVER)
        row = " | ".join(f"{cell:.2f}" for cell in [*cells, sum(cells), waited])
        print(f"| {mark} | {row} | {noted[mark].memory_mb:.0f} |")
    states = Counter(trial.state for trial in simulation.record.trials.values())
    hours, ended = simulation.now / 3600, simulation.ended - simulation.before
    busy = sum(ledger.wall[part] for part in IN_DRIVER)
    print(f"\n{dict(states)}; at most {simulation.most_at_once} at once; {hours:.2f} h, simulated in {wall:.0f} s")
    seconds, events = 3600 * hours, ledger.calls["record"]
    print(f"a trial ends every {seconds / ended:.2f} s, an event every {seconds / events:.2f} s")
    print(f"the controller is busy for {busy / seconds:.2%} of that time ({busy:.0f} s, waits included)")
    return simulation


def after_the_search(simulation: Simulation, *, mlflow: int) -> None:
    """Print what the end of a sweep and a resume cost, and deliver the first trials to MLflow."""
    spec, directory = simulation.spec, simulation.directory
    simulation.record.close()
    sizes = {path.name: path.stat().st_size / 1e6 for path in (directory.events, directory.journal)}
    print("; ".join(f"{name} {size:.1f} MB" for name, size in sizes.items()))
    record = _timed("resume: read the record", lambda: Record(directory.events))
    _timed("resume: study, searcher, rungs", lambda: open_search(spec, directory, record, simulation.surrogate.epochs))
    trials = list(record.trials.values())
    verdicts = _timed("judge every trial", lambda: judge(trials, spec.rules, TOKEN_GRID, simulation.baselines))
    _timed(
        "missing confirmations",
        lambda: missing_confirmations(verdicts, record.trials, {}, seeds=spec.confirm_seeds, base_seed=0),
    )
    sweep = _timed("read and judge the sweep again", lambda: read_sweep(directory))
    _timed("results, champions, plots", lambda: write_results(directory.report, sweep, exported={}))
    record.close()
    if mlflow:
        deliver(simulation, mlflow)
    print(f"peak memory {memory_mb():.0f} MB")


def deliver(simulation: Simulation, trials: int) -> dict[str, int]:
    """Deliver the first trials' events to a new SQLite database and return its rows by table."""
    root = simulation.directory.path / "delivery"
    if root.exists():  # of a sweep that goes on
        shutil.rmtree(root)
    root.mkdir()
    first = set(islice(simulation.record.trials, trials))
    events = root / "events.jsonl"
    with simulation.directory.events.open("rb") as source, events.open("wb") as target:
        for event, _ in read_events(simulation.directory.events):
            line = source.readline()
            if event.get("trial") in first or "trial" not in event:
                target.write(line)
    start = time.perf_counter()
    with simulation.ledger.measuring():
        writer = MlflowWriter(
            events,
            uri=local_uri(root),
            experiment=simulation.spec.name,
            artifact_root=root,
            sweep=simulation.directory.name,
            cursor=root / "cursor",
        )
        print(writer.close(7200))
    seconds = time.perf_counter() - start
    database = sqlite3.connect(root / "mlflow.db")
    rows = {table: int(database.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]) for table in TABLES}
    database.close()
    print(
        f"MLflow, {len(first)} trials on SQLite: {', '.join(f'{count} {table}' for table, count in rows.items())}; "
        f"{seconds:.0f} s, {sum(rows.values()) / seconds:.0f} rows/s, {1e3 * seconds / len(first):.0f} ms per trial, "
        f"{(root / 'mlflow.db').stat().st_size / 1e6:.1f} MB"
    )
    return rows


def compare(predicted: Ledger, spec: Spec) -> None:
    """Run the sweep itself and print the cost of every part next to the simulation's."""
    measured, start = Ledger(), time.perf_counter()
    with measured.measuring():
        run_sweep(spec)
    wall = time.perf_counter() - start
    print("\n| part | predicted, ms per call | measured, ms per call | predicted, calls | measured, calls |")
    print("|---|---:|---:|---:|---:|")
    for part in PARTS:
        cells = [f"{1e3 * found.seconds[part] / (found.calls[part] or 1):.2f}" for found in (predicted, measured)]
        counts = [str(found.calls[part]) for found in (predicted, measured)]
        print(f"| {part} | {' | '.join([*cells, *counts])} |")
    total = [1e3 * sum(found.seconds[part] for part in PARTS) / spec.trials for found in (predicted, measured)]
    print(f"| all, ms per trial | {total[0]:.1f} | {total[1]:.1f} | | |")
    print(f"\nthe whole sweep took {wall:.0f} s")


def _timed(name: str, work: Callable[[], Any]) -> Any:
    start = time.perf_counter()
    found = work()
    print(f"{name}: {time.perf_counter() - start:.2f} s", flush=True)
    return found


def _arguments() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spec", type=Path, default=SPEC, help="search, objectives and stopping; rate_distortion.yaml")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override of the spec; repeatable"
    )
    parser.add_argument("--trials", type=int, help="instead of the spec's")
    parser.add_argument("--slots", type=int, help="trials at once, instead of the spec's concurrency")
    parser.add_argument("--minutes", type=float, default=20.0, help="median duration of a whole trial (20)")
    parser.add_argument("--seed", type=int, default=0, help="of the simulated results; the search uses the spec's")
    parser.add_argument("--mlflow", type=int, default=500, metavar="N", help="deliver N trials to MLflow; 0 for none")
    parser.add_argument("--real", action="store_true", help="then run the sweep on Ray and compare")
    parser.add_argument("--resume", type=Path, metavar="DIRECTORY", help="go on with a simulated sweep, to --trials")
    parser.add_argument("--out", type=Path, help="where files go; default: a temporary directory")
    return parser


if __name__ == "__main__":
    main()

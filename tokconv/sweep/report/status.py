"""What `tokconv status`, `stop` and `report` say of sweeps that run or ran."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tokconv.errors import SpecError, SweepError
from tokconv.sweep.judge.snapshot import SweepSnapshot, all_sweeps, find_sweep, read_sweep
from tokconv.sweep.record.driver import stop as stop_driver
from tokconv.sweep.record.events import FINISHED
from tokconv.sweep.report.progress import STATES, best_table
from tokconv.sweep.report.results import roomy, write_results
from tokconv.system.terminal import duration


def print_status(name: str | None, *, storage: str, as_json: bool) -> None:
    """One sweep in detail, or a line for each when none is named.

    Raises:
        SweepError: no such sweep; without a name, none at all; a damaged record.
    """
    if name is not None:
        view = read_sweep(find_sweep(name, storage))
        if as_json:
            print(json.dumps(_facts(view), indent=2))
        else:
            _print_one(view)
        return
    views, unreadable = _all(storage)
    if not views and not unreadable:
        raise SweepError(f"{storage}: holds no sweep; tokconv sweep sweeps/demo.yaml starts one")
    if as_json:
        print(json.dumps([_facts(view) for view in views], indent=2))
    else:
        roomy(Console()).print(_overview(views))
    for line in unreadable:
        print(line, file=sys.stderr)


def stop_sweep(name: str, *, storage: str, timeout: float) -> None:
    """Stop the driver of a running sweep as Ctrl-C would, and say how to go on.

    Raises:
        SweepError: no such sweep, nobody runs it on this machine, or it did not end in time.
    """
    directory = find_sweep(name, storage)
    stop_driver(directory.path, timeout=timeout)
    view = read_sweep(directory)
    print(f"{directory.name}: stopped, {_counts(view)}; go on with: tokconv sweep SPEC --resume")


def write_report(name: str, *, storage: str, out: Path | None) -> None:
    """Write a sweep's page, table and plots again from its record, while it runs or afterwards.

    Args:
        out: a directory; by default the sweep's own report/.

    Raises:
        SweepError: no such sweep, or a damaged record.
    """
    from tokconv.sweep.report.page import write_page  # a second of imports that status does not need

    view = read_sweep(find_sweep(name, storage))
    out = view.directory.report if out is None else out
    trials, confirmations = list(view.trials.values()), list(view.confirmations.values())
    write_results(out, view.verdicts, trials, view.spec, confirmations=confirmations, exported=None)
    page = write_page(view, out / view.directory.page.name)
    print(f"{page} ({_counts(view)}; results.csv, pareto.png and learning_curves.png beside it)")


def _all(storage: str) -> tuple[list[SweepSnapshot], list[str]]:
    views, unreadable = [], []
    for directory in all_sweeps(storage):
        try:
            views.append(read_sweep(directory))
        except (SweepError, SpecError) as error:
            # One sweep of another version must not hide the others.
            unreadable.append(f"{directory.name}: cannot be read ({error})")
    return sorted(views, key=lambda view: view.last), unreadable


def _overview(views: Sequence[SweepSnapshot]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for column in ("sweep", "state", "trials", "best fvu by grid", "time left", "last event"):
        table.add_column(column, no_wrap=column != "best fvu by grid")
    for view in views:
        best = [
            f"{verdict.grid}x{verdict.grid} {verdict.champion.figures['val/fvu']:.4f}"
            for verdict in view.verdicts
            if verdict.champion is not None
        ]
        last = time.strftime("%Y-%m-%d %H:%M", time.localtime(view.last / 1000))
        table.add_row(view.directory.name, view.state, _done(view), "  ".join(best) or "-", _left(view) or "-", last)
    return table


def _print_one(view: SweepSnapshot) -> None:
    where = f" (process {view.driver.pid} on {view.driver.host})" if view.driver is not None else ""
    print(f"{view.directory.name}: {view.state}{where}; {_counts(view)}")
    if where:
        elapsed = duration(time.time() - view.started / 1000)
        print(f"running for {elapsed}, {_left(view) or 'time left unknown'}")
    for trial in view.trials.values():
        if trial.state == "running" and where:
            fvu = f", fvu {trial.figures['val/fvu']:.4f}" if "val/fvu" in trial.figures else ""
            print(f"  trial {trial.uid}: {trial.ratio:.3g}x, epoch {len(trial.history)}/{view.epochs}{fvu}")
    roomy(Console()).print(best_table(view.verdicts))
    print(f"files: {view.directory.path}")
    if view.state not in ("running", "finished"):
        print("go on with: tokconv sweep SPEC --resume")


def _facts(view: SweepSnapshot) -> dict[str, Any]:
    return {
        "name": view.directory.name,
        "directory": str(view.directory.path),
        "state": view.state,
        "driver": None if view.driver is None else asdict(view.driver),
        "trials": view.spec.trials,
        "states": view.states,
        "confirmations": len(view.confirmations),
        "seconds_left": _seconds_left(view),
        "last_event": view.last / 1000,
        "best": {
            str(verdict.grid): {
                "trial": verdict.champion.uid,
                "evidence": None if verdict.evidence is None else verdict.evidence.status,
                "figures": verdict.champion.figures,
            }
            for verdict in view.verdicts
            if verdict.champion is not None
        },
    }


def _done(view: SweepSnapshot) -> str:
    return f"{sum(trial.state in FINISHED for trial in view.trials.values())}/{view.spec.trials}"


def _counts(view: SweepSnapshot) -> str:
    states = ", ".join(f"{count} {STATES[state]}" for state, count in view.states.items())
    told = f"{_done(view)} trials finished" + (f" ({states})" if states else "")
    return f"{told}; {len(view.confirmations)} confirmations" if view.confirmations else told


def _left(view: SweepSnapshot) -> str:
    seconds = _seconds_left(view)
    return "" if seconds is None else f"about {duration(seconds)} left"


def _seconds_left(view: SweepSnapshot) -> float | None:
    """At the pace of the present run; too long a guess while trials will be stopped early."""
    if view.state != "running" or not view.epochs_in_run:
        return None
    every = (*view.trials.values(), *view.confirmations.values())
    waiting = view.spec.trials - len(view.trials)
    waiting += view.spec.confirm_seeds * len(view.verdicts) - len(view.confirmations)
    left = max(0, waiting) * view.epochs
    left += sum(view.epochs - len(trial.history) for trial in every if trial.state == "running")
    return (view.last - view.started) / 1000 / view.epochs_in_run * left

"""The commands `tokconv status`, `stop` and `report`, for sweeps that run or have run."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from tokconv.errors import SpecError, SweepError, printable
from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.evidence import PROVEN, judged_text
from tokconv.sweep.judge.snapshot import SweepSnapshot, all_sweeps, find_sweep, read_sweep
from tokconv.sweep.record.counts import TrialCounts
from tokconv.sweep.record.driver import stop as stop_driver
from tokconv.sweep.record.events import FINISHED, TrialRecord, Trials
from tokconv.sweep.record.log import read_events
from tokconv.sweep.report.brief_tables import best_table
from tokconv.sweep.report.pace import Pace
from tokconv.sweep.report.table import widen
from tokconv.sweep.report.text import cell, moment, states_text
from tokconv.system.terminal import duration


def print_status(name: str | None, *, storage: str, as_json: bool) -> None:
    """Print one sweep in detail, or one line per sweep if none is named.

    Raises:
        SweepError: there is no such sweep or, without a name, no sweep at all; or a damaged record.
    """
    if name is not None:
        sweep = read_sweep(find_sweep(name, storage))
        if as_json:
            print(json.dumps(_facts(sweep), indent=2))
        else:
            _print_one(sweep)
        return
    sweeps, unreadable = _all(storage)
    if not sweeps and not unreadable:
        raise SweepError(f"{storage}: holds no sweep; tokconv sweep sweeps/demo.yaml starts one")
    if as_json:
        print(json.dumps([_facts(sweep) for sweep in sweeps], indent=2))
    else:
        widen(Console()).print(_overview(sweeps))
    for line in unreadable:
        print(printable(line), file=sys.stderr)


def stop_sweep(name: str, *, storage: str, timeout: float) -> None:
    """Stop the driver of a running sweep as Ctrl-C would, and print how to go on.

    Raises:
        SweepError: there is no such sweep, no process of this machine runs it, or it did not end in time.
    """
    directory = find_sweep(name, storage)
    stop_driver(directory.path, timeout=timeout)
    begun = any(event["event"] == "sweep_started" for event, _ in read_events(directory.events))
    done = _counts(read_sweep(directory)) if begun else "before its first trial"
    print(f"{printable(directory.name)}: stopped, {done}; go on with: tokconv sweep SPEC --resume")


def write_report(name: str, *, storage: str, out: Path | None) -> Path:
    """Write a sweep's page, table and plots anew from its record, while it runs or afterwards; return its directory.

    Args:
        out: a directory; by default the sweep's own report/.

    Raises:
        SweepError: there is no such sweep, or its record is damaged.
    """
    # Their imports take a second, and status does not need them.
    from tokconv.sweep.report.page import write_page
    from tokconv.sweep.report.results import write_results

    sweep = read_sweep(find_sweep(name, storage))
    out = sweep.directory.report if out is None else out
    write_results(out, sweep)
    page = write_page(sweep, out / sweep.directory.page.name)
    print(f"{printable(page)} ({_counts(sweep)}; results.csv and the plots are next to it)")
    return sweep.directory.path


def _all(storage: str) -> tuple[list[SweepSnapshot], list[str]]:
    sweeps, unreadable = [], []
    for directory in all_sweeps(storage):
        try:
            sweeps.append(read_sweep(directory))
        except (SweepError, SpecError) as error:
            # One sweep of another version must not hide the others.
            unreadable.append(f"{directory.name}: cannot be read ({error})")
    return sorted(sweeps, key=lambda sweep: sweep.last), unreadable


def _overview(sweeps: Sequence[SweepSnapshot]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    fvu = FIGURES["val/fvu"]
    best_column = f"{fvu.title} by grid"
    for column in ("sweep", "state", "trials", best_column, "proven", "time left", "last event"):
        table.add_column(column, no_wrap=column != best_column)
    for sweep in sweeps:
        best = [
            f"{verdict.name} {cell(fvu, verdict.first.evidence.figures)}"
            for verdict in sweep.verdicts
            if verdict.first.evidence is not None
        ]
        left, last = _left(sweep) or "-", moment(sweep.last)
        table.add_row(
            *(Text(printable(sweep.directory.name)), sweep.state, _done(sweep), "  ".join(best) or "-"),
            *(_proven(sweep), left, last),
        )
    return table


def _print_one(sweep: SweepSnapshot) -> None:
    where = f" (process {sweep.driver.pid} on {sweep.driver.host})" if sweep.driver is not None else ""
    print(f"{printable(sweep.directory.name)}: {sweep.state}{where}; {_counts(sweep)}")
    if where:
        elapsed = duration(time.time() - sweep.started / 1000)
        print(f"running for {elapsed}, {_left(sweep) or 'time left unknown'}")
    for trial in sweep.trials.values():
        if trial.state == "running" and where:
            judged = f", {judged_text(trial.figures)}" if trial.figures else ""
            print(f"  trial {trial.uid}: {trial.ratio:.3g}x, epoch {trial.epochs_done}/{sweep.epochs}{judged}")
    widen(Console()).print(best_table(sweep.verdicts, proof=True))
    for line in _verdict(sweep):
        print(line)
    print(f"files: {printable(sweep.directory.path)}")
    if sweep.resumes != sweep.directory.name:
        print(f"a newer run: {printable(sweep.resumes)}; --resume goes on with that one, unless it is moved away")
    elif sweep.state not in ("running", "finished"):
        print("go on with: tokconv sweep SPEC --resume")


def _verdict(sweep: SweepSnapshot) -> Iterator[str]:
    """Yield what came out: how many champions are proven, why the others are not, and where the report is."""
    yield f"verdict: {_proven(sweep)} champions are proven, that is better than every baseline over the confirmations"
    for verdict in sweep.verdicts:
        for award in verdict.awards:
            if award.finding:
                yield f"  {verdict.name} {award.purpose.name}: {printable(award.finding)}"
    page = sweep.directory.page
    if page.is_file():
        yield f"report: {printable(page)}"
    else:
        yield f"report: none yet; tokconv report {printable(sweep.directory.name)} writes it"


def _proven(sweep: SweepSnapshot) -> str:
    found = [award.evidence for verdict in sweep.verdicts for award in verdict.awards]
    return f"{sum(one is not None and one.status == PROVEN for one in found)}/{len(found)}"


def _facts(sweep: SweepSnapshot) -> dict[str, Any]:
    return {
        "name": sweep.directory.name,
        "directory": str(sweep.directory.path),
        "state": sweep.state,
        "driver": None if sweep.driver is None else asdict(sweep.driver),
        "trials": sweep.outline.trials,
        "states": sweep.states,
        "confirmations": len(sweep.confirmations),
        "seconds_left": _seconds_left(sweep),
        "last_event": sweep.last / 1000,
        "report": str(sweep.directory.page) if sweep.directory.page.is_file() else None,
        "best": {
            str(verdict.grid): {
                award.purpose.name: {
                    "trial": award.evidence.champion.uid,
                    "evidence": award.evidence.status,
                    "figure": award.criterion.figure,
                    "figures": award.evidence.figures,
                    "half_widths": award.evidence.half_widths,
                    "trial_figures": award.evidence.champion.figures,
                    "finding": award.finding,
                }
                for award in verdict.awards
                if award.evidence is not None
            }
            for verdict in sweep.verdicts
        },
    }


def _done(sweep: SweepSnapshot) -> str:
    return f"{sum(trial.state in FINISHED for trial in sweep.trials.values())}/{sweep.outline.trials}"


def _counts(sweep: SweepSnapshot) -> str:
    states = states_text(sweep.states)
    counts = f"{_done(sweep)} trials finished" + (f" ({states})" if states else "")
    return f"{counts}; {len(sweep.confirmations)} confirmations" if sweep.confirmations else counts


def _left(sweep: SweepSnapshot) -> str:
    seconds = _seconds_left(sweep)
    return "" if seconds is None else f"about {duration(seconds)} left"


def _seconds_left(sweep: SweepSnapshot) -> float | None:
    """Return the time left, by the pace of the present run."""
    if sweep.state != "running":
        return None
    trials, counts, pace = Trials(sweep.directory.events), TrialCounts(), Pace(sweep.epochs)
    running: list[TrialRecord] = []
    for event, _ in read_events(sweep.directory.events):
        trials.apply(event)
        if event["time"] >= sweep.started:
            ended, running = counts.update(trials)
            pace.update(ended, running, event["time"] / 1000)
    repeats = sum(one.wanted - len(one.runs) for verdict in sweep.verdicts for one in verdict.pending.values())
    searches = max(0, sweep.outline.trials - len(trials.trials))
    return pace.seconds_left(running, time.time(), searches=searches, confirmations=repeats)

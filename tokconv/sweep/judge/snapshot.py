"""Reads a sweep, finished, cut off or running, from its directory, without writing there or taking its lock."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.errors import SweepError
from tokconv.evaluation.protocol import protocol_of
from tokconv.sweep.judge.evidence import Figures
from tokconv.sweep.judge.verdicts import Verdict, judge
from tokconv.sweep.record.driver import Driver, driver_of
from tokconv.sweep.record.events import FINISHED, INVALID, RefusedPoint, TrialRecord, Trials
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import read_events
from tokconv.sweep.spec.outline import Outline, read_outline
from tokconv.system.files import local_path, newest_numbered
from tokconv.system.storage import is_url

if TYPE_CHECKING:
    from tokconv.sweep.record.remote import Root
    from tokconv.sweep.spec.schema import Spec


@dataclass(frozen=True)
class SweepSnapshot:
    """A sweep at the moment it was read."""

    directory: SweepDirectory
    outline: Outline
    """What was asked for: how many runs, and which of them win."""
    state: str
    """finished, interrupted (the record says so), cut off (the record just ends) or running."""
    driver: Driver | None
    epochs: int
    """Epochs of a trial that is not stopped early."""
    started: int
    """When its present or last run began, in milliseconds since 1970."""
    last: int
    """When the last event was written, in milliseconds since 1970."""
    trials: Mapping[str, TrialRecord]
    """The trials of the search, by uid."""
    confirmations: Mapping[str, TrialRecord]
    refused: Mapping[str, RefusedPoint]
    """Invalid points of the search, by uid; no trial started for them."""
    verdicts: list[Verdict]
    facts: Mapping[str, Any]
    """The newest `sweep_started` event: store, git commit and so on."""
    read_spec: Callable[[], Spec] = field(repr=False, compare=False)
    """Reads the whole spec, which takes half a second and which `tokconv status` does not need."""

    @cached_property
    def spec(self) -> Spec:
        """The spec. Raises SpecError if this version cannot read it."""
        return self.read_spec()

    @property
    def resumes(self) -> str:
        """The run that `--resume` goes on with: the newest of this spec's name, which may be another one."""
        newest = newest_numbered(self.directory.path.parent, self.directory.name.rpartition("-")[0])
        return self.directory.name if newest is None else newest.name

    @property
    def protocol(self) -> int:
        """The evaluation protocol of its figures."""
        return protocol_of(self.facts)

    @property
    def states(self) -> dict[str, int]:
        """State -> number of the search's trials in it, without states that no trial is in; invalid points last."""
        states = Counter(trial.state for trial in self.trials.values())
        states[INVALID] = len(self.refused)
        return {state: states[state] for state in ("running", *FINISHED, INVALID) if states[state]}


def find_sweep(name: str | Path, storage: str = "runs") -> SweepDirectory:
    """Return the directory of a sweep.

    Args:
        name: a spec's name (its newest run), a run's own name (`demo-001`), or a path.
        storage: the spec's `storage`, where a name is looked up.

    Raises:
        SweepError: there is no such sweep; the message lists the sweeps that there are.
        StorageError: `storage` is a URL that cannot be read.
    """
    sweeps = local_path(storage) / "sweeps"
    for path in (local_path(name), sweeps / name):
        if (path / "events.jsonl").is_file():
            return SweepDirectory(path.resolve())
    if is_url(storage):
        root = _opened(storage)
        if (run := root.run_of(str(name))) is not None:
            return root.to_read(run)
        place, there = f"{root.remote}/sweeps", root.runs()
    else:
        newest = newest_numbered(sweeps, str(name))
        if newest is not None and (newest / "events.jsonl").is_dir():
            url = f"file://{local_path(storage).absolute()}"
            raise SweepError(f"{name}: {newest} was written by a sweep whose storage is a URL; use: --storage {url}")
        if newest is not None:
            return SweepDirectory(newest.resolve())
        place, there = str(sweeps), [found.name for found in all_sweeps(storage)]
    raise SweepError(f"{name}: no such sweep in {place}; there are: {', '.join(there) or 'none'}")


def all_sweeps(storage: str = "runs") -> list[SweepDirectory]:
    """Return every sweep in a storage, by name; those at a URL are downloaded.

    Raises:
        StorageError: `storage` is a URL that cannot be read.
    """
    if is_url(storage):
        root = _opened(storage)
        return [root.to_read(run) for run in root.runs()]
    found = sorted((local_path(storage) / "sweeps").glob("*/events.jsonl"))
    # Of a sweep at a file:// URL, this is a folder of pieces.
    return [SweepDirectory(path.parent.resolve()) for path in found if path.is_file()]


def _opened(storage: str) -> Root:
    """Return a storage at a URL, to read from."""
    from tokconv.sweep.record.remote import open_root  # Its imports take time, and most sweeps need none of them.

    return open_root(storage, to_write=False)


def read_sweep(directory: SweepDirectory) -> SweepSnapshot:
    """Read a sweep's record and judge it as it stands.

    Raises:
        SweepError: the record is damaged, or the sweep has not begun.
        SpecError: its spec is missing or damaged.
    """
    found = Trials(directory.events)
    started: dict[str, Any] | None = None
    ended: dict[str, Any] | None = None
    last, driver = 0, driver_of(directory.path)
    for event, _ in read_events(directory.events):
        found.apply(event)
        last = event["time"]
        if event["event"] == "sweep_started":
            started, ended = event, None
        elif event["event"] == "sweep_ended":
            ended = event
    if started is None:
        if driver is not None:
            raise SweepError(f"{directory.path}: has not begun yet; try again in a moment")
        raise SweepError(f"{directory.path}: ended before its first trial; go on with: tokconv sweep SPEC --resume")
    outline = read_outline(directory.spec)
    return SweepSnapshot(
        directory=directory,
        outline=outline,
        state="running" if driver is not None else "cut off" if ended is None else ended["state"],
        driver=driver,
        epochs=_epochs(started, (*found.trials.values(), *found.confirmations.values()), directory),
        started=started["time"],
        last=last,
        trials=found.trials,
        confirmations=found.confirmations,
        refused=found.refused,
        verdicts=judge(
            found.trials.values(),
            outline.rules,
            started["token_grid"],
            _baselines(started, directory),
            confirmations=found.confirmations.values(),
            seeds=outline.confirm_seeds,
        ),
        facts=started,
        read_spec=partial(recorded_spec, directory),
    )


def recorded_spec(directory: SweepDirectory) -> Spec:
    """Read the spec that a sweep wrote. Raises SpecError if it is missing, or this version cannot read it."""
    from tokconv.sweep.spec.file import load_spec

    # Every sweep writes its objectives; a spec without them is of a version whose default these were.
    return load_spec(directory.spec).with_objectives(())


def _epochs(started: Mapping[str, Any], trials: Iterable[TrialRecord], directory: SweepDirectory) -> int:
    """Return the epochs of a whole trial. Records of earlier versions have them in what trials report only."""
    known = [started["plan"].get("epochs"), *(trial.figures.get("epochs") for trial in trials)]
    found = next((epochs for epochs in known if epochs is not None), None)
    return recorded_spec(directory).base_config().training.epochs if found is None else int(found)


def _baselines(started: Mapping[str, Any], directory: SweepDirectory) -> dict[int, Mapping[str, Figures]]:
    """Return the baselines' figures by grid. Records of 0.1.0 lack them; their champions.json has them."""
    held = started.get("baselines")
    grids: tuple[int, ...] = ()
    if held is None:
        grids = recorded_spec(directory).grids()
        try:
            written = json.loads((directory.report / "champions.json").read_text(encoding="utf-8"))
            held = {grid: champion["baselines"] for grid, champion in written.items()}
        except (OSError, ValueError, KeyError):
            held = {}
    return {grid: held.get(str(grid), {}) for grid in sorted({*grids, *map(int, held)})}

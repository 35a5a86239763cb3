"""A sweep whose `storage` is a URL: a working directory on the driver's machine, mirrored there while it runs.

    ROOT/sweeps/NAME-001/
        events.jsonl/00000 ...  study.journal/00000 ...   the record and the study, in pieces (`tokconv.system.mirror`)
        spec.yaml  champions/  artifacts/  report/  mlflow.cursor
        trials/UID/epoch-NNNN/                            checkpoints, put there by the trials themselves
        driver.json                                       the driver that works on it (`Lease`)

While a driver lives, its directory is the truth. Another machine, or one that lost the directory, starts from the
mirror, which may lack the last seconds of the record; what a trial did in them is read from its checkpoint.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tokconv.errors import SpecError, SweepError, printable
from tokconv.sweep.record.driver import driver_of
from tokconv.sweep.record.figures import BEST
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.lease import Lease, host_at_work
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote_checkpoints import STATE, newest_checkpoint
from tokconv.system.files import local_path, new_numbered, newest_numbered, number_of
from tokconv.system.mirror import Mirror, fetch_log, signatures, write_state
from tokconv.system.storage import Remote, cache_dir, is_url

DRAIN_SECONDS = 120.0
FILES = ("champions", "artifacts", "report")
"""The directories that are mirrored whole."""


@dataclass(frozen=True)
class Root:
    """The directory that holds a storage's sweeps on this machine and, if `storage` is a URL, the place there."""

    local: Path
    remote: Remote | None = None

    def new(self, name: str) -> SweepDirectory:
        """Create and return the next directory of a spec's name that is free on this machine and at the URL."""
        for taken in (self.remote / "sweeps").folders() if self.remote is not None else ():
            if number_of(taken, name) is not None:
                (self.local / "sweeps" / taken).mkdir(parents=True, exist_ok=True)
        return self._directory(new_numbered(self.local / "sweeps", name).name)

    def newest(self, name: str) -> SweepDirectory:
        """Return the last run of a spec, downloaded unless this machine has it. Raises SweepError if there is none."""
        if self.remote is None:
            found = newest_numbered(self.local / "sweeps", name)
            taken = None if found is None else found.name
        else:
            taken = self._newest(name)
        if taken is None:
            place = (self.remote or self.local) / "sweeps"
            raise SweepError(f"{place}: holds no run of {name!r} to resume; start it without --resume")
        return self._restored(taken)

    def runs(self) -> list[str]:
        """Return the names of the runs at the URL, sorted."""
        assert self.remote is not None
        return (self.remote / "sweeps").folders()

    def run_of(self, name: str) -> str | None:
        """Return the run at the URL of this name, or the last run of the spec of this name."""
        return name if name in self.runs() else self._newest(name)

    def to_read(self, run: str) -> SweepDirectory:
        """Return a run at the URL to read from, downloaded unless a driver of this machine works on it.

        One line on standard error says if a driver of another machine may be at work.
        """
        directory = self._directory(run)
        if driver_of(directory.path) is not None:
            return directory
        assert directory.remote is not None
        if (host := host_at_work(directory.remote)) is not None:
            print(
                f"{printable(run)}: a driver on {printable(host)} has not signed off; what follows is what it has "
                "uploaded",
                file=sys.stderr,
                flush=True,
            )
        return self._restored(run)

    def _newest(self, name: str) -> str | None:
        runs = [run for run in self.runs() if number_of(run, name)]
        return max(runs, key=lambda run: number_of(run, name) or 0, default=None)

    def _restored(self, run: str) -> SweepDirectory:
        directory = self._directory(run)
        if directory.remote is not None:
            directory.path.mkdir(parents=True, exist_ok=True)
            with directory.lock():
                restore(directory, directory.remote)
        return directory

    def _directory(self, name: str) -> SweepDirectory:
        return SweepDirectory((self.local / "sweeps" / name).resolve(), self.remote and self.remote / "sweeps" / name)


def open_root(storage: str, *, to_write: bool = True) -> Root:
    """Return the place that a spec's `storage` names.

    Args:
        to_write: check that a URL is writable.

    Raises:
        SpecError: it is a file.
        StorageError: it is a URL that cannot be written; why, and what to check.
        MissingExtraError: the driver of such URLs is not installed.
    """
    if is_url(storage):
        remote = Remote(storage.rstrip("/"))
        if to_write:
            remote.check_writable("storage")
        protocol, place = remote.url.split("://", 1)
        name = "".join(letter if letter.isalnum() else "-" for letter in place)
        return Root(cache_dir() / "sweeps" / f"{protocol}-{name}", remote)
    root = local_path(storage).resolve()
    if root.exists() and not root.is_dir():
        raise SpecError(f"storage: {root} is a file; name a directory; it is created if it is missing")
    return Root(root)


def restore(directory: SweepDirectory, remote: Remote) -> None:
    """Make a working directory equal to its mirror, unless it already has all that the mirror has.

    Raises:
        StorageError: the mirror cannot be read, or is damaged.
    """
    logs = {path.name: fetch_log(remote, path.name) for path in (directory.events, directory.journal)}
    here = directory.events.read_bytes() if directory.events.exists() else b""
    if directory.spec.exists() and here.startswith(logs[directory.events.name]):
        if not directory.journal.exists():
            # Made anew from the record, it would not be a continuation of what the mirror has.
            directory.journal.write_bytes(logs[directory.journal.name])
        return
    for entry in directory.path.iterdir():
        if entry.name != ".lock":
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    names = [name for name in remote.files() if _is_mirrored(name)]
    position = directory.cursor.name
    remote.download_all([*names, *([position] if (remote / position).read() is not None else [])], directory.path)
    write_state(directory.path, signatures(directory.path, names))
    directory.journal.write_bytes(logs[directory.journal.name])
    # The record comes last: a directory without it is not a sweep yet and is restored again.
    directory.events.write_bytes(logs[directory.events.name])
    # Not to standard output, where commands print JSON.
    print(f"downloaded from {printable(remote)}: {printable(directory.path)}", file=sys.stderr, flush=True)


@contextmanager
def mirrored(directory: SweepDirectory, record: Record) -> Iterator[None]:
    """Mirror a sweep's directory while the block runs; no other driver may work on it meanwhile.

    If the last seconds of the record were lost, trials that it does not know start afresh, and what the others did in
    those seconds is taken from their checkpoints.

    Raises:
        SweepError: another driver works on it.
        StorageError: not everything had arrived after the block.
    """
    if directory.remote is None:
        yield
        return
    with Lease(directory.remote) as lease:
        if not directory.events.read_bytes().startswith(fetch_log(directory.remote, directory.events.name)):
            raise SweepError(f"{directory.remote}: another driver went on with it just now; run the same command again")
        _drop_unknown(directory.remote, record)
        _catch_up(directory.remote, record)
        with Mirror(
            directory.path,
            directory.remote,
            files=lambda: _mirrored_files(directory.path),
            # The study comes first: it must know every trial in the record.
            logs=(directory.journal.name, directory.events.name),
            positions=(directory.cursor.name,),
            may_write=lambda: lease.held,
            drain_seconds=DRAIN_SECONDS,
            resume_with="the same command with --resume, on this machine,",
        ):
            yield


def _drop_unknown(remote: Remote, record: Record) -> None:
    """Remove the checkpoints of trials that the record does not know: new trials will have their names."""
    known = record.trials.keys() | record.confirmations.keys()
    trials = remote / "trials"
    for uid in trials.folders():
        if uid not in known:
            trials.remove([f"{uid}/{name}" for name in (trials / uid).files()])


def _catch_up(remote: Remote, record: Record) -> None:
    """Record the epochs of running trials that so far only their checkpoints hold."""
    for trial in record.unfinished():
        checkpoint = newest_checkpoint(remote / "trials" / trial.uid)
        if checkpoint is None:
            continue
        content = (checkpoint / STATE).read() or b"{}"
        state = json.loads(content)
        last = int(trial.figures.get("epoch", -1))
        for row in state.get("history", []):
            if row["epoch"] > last:
                best = {BEST: state[BEST]} if BEST in state and row["epoch"] == row["epochs"] else {}
                record.append_report(trial.uid, row | best, checkpoint.url)


def _mirrored_files(directory: Path) -> list[str]:
    found = [directory / "spec.yaml", *(path for name in FILES for path in sorted((directory / name).rglob("*")))]
    names = [path.relative_to(directory).as_posix() for path in found if path.is_file()]
    return [name for name in names if _is_mirrored(name)]


def _is_mirrored(name: str) -> bool:
    """Return whether a file belongs in the mirror; temporary files, whose names start with a dot, do not."""
    parts = name.split("/")
    return (name == "spec.yaml" or parts[0] in FILES) and not any(part.startswith(".") for part in parts)

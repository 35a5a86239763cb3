"""The driver of a sweep: a file in its directory while a process works there, so that others can see and stop it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tokconv.errors import SweepError
from tokconv.system.files import write_json

if TYPE_CHECKING:
    import psutil

FILE = "driver.json"
SAME_START = 1.0
"""Seconds by which two readings of when a process was started may differ."""


@dataclass(frozen=True)
class Driver:
    """A process that has registered as working on a sweep."""

    pid: int
    host: str
    started: float
    """When the process was started, in seconds since 1970: another process may have its pid by now."""
    signal: int
    """The signal that stops it."""
    directory: str = ""
    """Where it works: in a copy of the sweep, this file speaks of the original. "" in files of older versions."""

    @property
    def is_here(self) -> bool:
        """Whether the process is one of this machine."""
        return self.host == socket.gethostname()

    def process(self) -> psutil.Process | None:
        """Return the process if it runs on this machine."""
        if not self.is_here:
            return None
        import psutil  # Only sweeps that run need it.

        try:
            found = psutil.Process(self.pid)
            same = abs(found.create_time() - self.started) < SAME_START
            return found if same and found.status() != psutil.STATUS_ZOMBIE else None
        except psutil.NoSuchProcess:
            return None


@contextmanager
def registered(directory: Path) -> Iterator[None]:
    """Register this process as the sweep's driver while the block runs. The caller holds the sweep's lock."""
    import psutil

    own = psutil.Process()
    driver = Driver(own.pid, socket.gethostname(), own.create_time(), stop_signal(), str(directory.resolve()))
    write_json(directory / FILE, asdict(driver))
    try:
        yield
    finally:
        (directory / FILE).unlink(missing_ok=True)


def stop_signal() -> signal.Signals:
    """Return the signal that stops this process: Ctrl-C's SIGINT, unless the process was started with that ignored.

    Shells start background processes that way. SIGTERM is not the rule, because on it Ray prints the stacks of its C++
    threads.
    """
    ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN
    return signal.SIGTERM if ignored else signal.SIGINT


def driver_of(directory: Path) -> Driver | None:
    """Return the sweep's driver: a living process of this machine, or one of another machine that has not signed off.

    None if there is none, if the process is gone, or if the directory is a copy of the one it works in.
    """
    try:
        found = json.loads((directory / FILE).read_text(encoding="utf-8"))
        driver = Driver(int(found["pid"]), str(found["host"]), float(found["started"]), int(found["signal"]))
        driver = replace(driver, directory=str(found.get("directory", "")))
    except (OSError, ValueError, TypeError, KeyError):
        return None
    if not driver.is_here:
        return driver
    original = Path(driver.directory or directory)
    copied = original.exists() and not original.samefile(directory)
    return None if copied or driver.process() is None else driver


def stop(directory: Path, *, timeout: float) -> None:
    """Ask the driver to stop, as Ctrl-C does, and wait until it has ended.

    Raises:
        SweepError: the sweep has no driver, its driver is on another machine or of another user, or it did not end in
            time.
    """
    driver = driver_of(directory)
    if driver is None:
        raise SweepError(f"{directory.name}: no process runs this sweep; nothing was stopped")
    process = driver.process()
    if process is None:
        raise SweepError(
            f"{directory.name}: process {driver.pid} on {driver.host} runs this sweep; stop it there, or as the job it "
            "is: ray job stop --address ADDRESS JOB"
        )
    if process.pid == os.getpid():
        raise SweepError(f"{directory.name}: this very process runs this sweep")
    import psutil

    try:
        process.send_signal(driver.signal)
        process.wait(timeout)
    except psutil.NoSuchProcess:
        return  # It ended by itself meanwhile.
    except psutil.AccessDenied as error:
        raise SweepError(
            f"{directory.name}: process {driver.pid} of {process.username()} runs this sweep, and another user may not "
            "stop it; ask its owner"
        ) from error
    except psutil.TimeoutExpired as error:
        raise SweepError(
            f"{directory.name}: process {driver.pid} has not ended after {timeout:g} s; it may still be writing"
        ) from error


def git_commit() -> str | None:
    """Return the commit of the repository that the driver works in; None outside of one, or without git."""
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

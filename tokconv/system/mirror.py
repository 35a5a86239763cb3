"""Copying a directory to object storage while work goes on that writes to it.

The directory is authoritative; the storage follows it, at most `INTERVAL` seconds and one upload behind. A server that
does not answer delays nothing: what it missed is uploaded when it answers again.

    a file that is written atomically   uploaded if it is new or changed, removed from the storage if it is gone; it
                                        arrives before the log lines that mention it
    a log that only grows               LOG/00000, LOG/00001, ...: pieces of PIECE bytes, of which only the last is ever
                                        written again; whole lines only (object storage cannot append)
    a file with the position up to      read before the logs and uploaded after them, so that it never points beyond
    which a log was read                the lines in the storage
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterable, Sequence
from pathlib import Path

from tokconv.errors import StorageError
from tokconv.system.files import file_digest, read_json_object, write_text
from tokconv.system.storage import FIRST_WAIT, LONGEST_WAIT, Remote

INTERVAL = 5.0
PIECE = 1 << 20
STATE = ".mirror.json"
"""In the directory: the size and time of every uploaded file, so that another process does not upload it again."""
SHA256 = ".sha256"

Signature = list[int]


class Mirror:
    """A daemon thread that copies a directory to object storage from construction to `close`.

    Args:
        directory: the directory to copy.
        remote: where to copy it.
        files: returns the files to copy, relative to the directory, in the order in which they are to arrive; called at
            every round.
        logs: files that only grow, in the order in which they are to arrive. They are read in the opposite order, so
            that the first log is never behind what the second one mentions.
        positions: files that hold the position up to which a log was read.
        digests: also write NAME.sha256 next to every file, after it, in the format of `sha256sum`.
        may_write: called before every round; false ends the copying, since another process writes there now.
        drain_seconds: how long leaving the context waits for the remaining uploads; a tenth of it after an error.
        resume_with: the command that the user has to run if not everything arrived.
        on_message: called once, from the thread, when the server first fails.
    """

    def __init__(
        self,
        directory: Path,
        remote: Remote,
        *,
        files: Callable[[], Iterable[str]],
        logs: Sequence[str] = (),
        positions: Sequence[str] = (),
        digests: bool = False,
        may_write: Callable[[], bool] = lambda: True,
        drain_seconds: float = 60.0,
        resume_with: str = "--resume",
        on_message: Callable[[str], None] = print,
    ) -> None:
        self._directory, self._remote, self._files = Path(directory), remote, files
        self._logs, self._positions, self._digests = logs, positions, digests
        self._may_write, self._on_message = may_write, on_message
        self._uploaded = _read_state(self._directory)
        self._offsets: dict[str, int] = dict.fromkeys(logs, 0)
        self._drain_seconds, self._resume_with = drain_seconds, resume_with
        self._error = ""
        self._first_error = True
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._run, name=f"mirror to {remote}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if error is None:
            self.close(self._drain_seconds)
            return
        try:
            self.close(self._drain_seconds / 10)
        except StorageError as late:
            # The error of the block is the one to raise; this one is only reported.
            self._on_message(str(late))

    def close(self, timeout: float) -> None:
        """Upload what is left, for at most `timeout` seconds.

        Raises:
            StorageError: not everything arrived; the message says what to do.
        """
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        if not self._done:
            raise StorageError(
                f"{self._remote}: not everything arrived ({self._error or 'it took too long'}); it is kept in "
                f"{self._directory}, and {self._resume_with} uploads it"
            )

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._abandoned.is_set():
            if not self._may_write():
                self._error = "another process writes there now"
                return
            # Read before the directory, so that the last round sees everything that was written before close().
            closing = self._closing.is_set()
            try:
                self._copy_changes()
            except (StorageError, OSError) as error:
                if self._first_error:
                    self._first_error = False
                    self._on_message(f"{error}; the work goes on, and what is missing there is uploaded later")
                self._error = str(error)
                self._abandoned.wait(wait) if closing else self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            self._error, wait = "", FIRST_WAIT
            if closing:
                self._done = True
                return
            self._closing.wait(INTERVAL)

    def _copy_changes(self) -> None:
        """Copy what changed since the last round."""
        positions = {name: content for name in self._positions if (content := _content(self._directory / name))}
        ends = {name: _whole_lines(self._directory / name) for name in reversed(self._logs)}
        # Before the log lines that mention them.
        present = self._upload_files()
        for name in self._logs:
            self._upload_log(name, ends[name])
        for name, content in positions.items():
            (self._remote / name).write(content)
        gone = [name for name in self._uploaded if name not in present]
        if gone:
            self._remote.remove([*gone, *(f"{name}{SHA256}" for name in gone if self._digests)])
            for name in gone:
                del self._uploaded[name]
            write_state(self._directory, self._uploaded)

    def _upload_log(self, name: str, end: int) -> None:
        """Upload the pieces of a log that grew since the last round."""
        if self._offsets[name] >= end:
            return
        with (self._directory / name).open("rb") as log:
            while self._offsets[name] < end:
                number = self._offsets[name] // PIECE
                stop = min((number + 1) * PIECE, end)
                log.seek(number * PIECE)
                (self._remote / name / f"{number:05d}").write(log.read(stop - number * PIECE))
                self._offsets[name] = stop

    def _upload_files(self) -> set[str]:
        present, uploaded = set(), dict(self._uploaded)
        try:
            for name in self._files():
                path = self._directory / name
                if not path.exists():
                    # Replaced or removed since it was listed; the next round sees the change.
                    continue
                present.add(name)
                signature = _signature(path)
                if self._uploaded.get(name) != signature:
                    (self._remote / name).upload(path)
                    if self._digests:
                        (self._remote / f"{name}{SHA256}").write(f"{file_digest(path)}  {path.name}\n".encode())
                    self._uploaded[name] = signature
        finally:
            if self._uploaded != uploaded:
                write_state(self._directory, self._uploaded)
        return present


def write_state(directory: Path, uploaded: dict[str, Signature]) -> None:
    """Record in the directory which files were uploaded."""
    write_text(directory / STATE, json.dumps(uploaded) + "\n")


def keep_uploaded(directory: Path, there: Container[str]) -> None:
    """Forget uploaded files that are no longer at the remote, so that a `Mirror` uploads them again."""
    uploaded = _read_state(directory)
    kept = {name: signature for name, signature in uploaded.items() if name in there}
    if kept != uploaded:
        write_state(directory, kept)


def signatures(directory: Path, names: Iterable[str]) -> dict[str, Signature]:
    """Return the size and time by which `Mirror` notices changes, for files that were just downloaded."""
    return {name: _signature(directory / name) for name in names}


def fetch_log(remote: Remote, name: str) -> bytes:
    """Return the log that a mirror uploaded, joined from its pieces; empty if there is none.

    Raises:
        StorageError: the log cannot be read, or a piece is missing.
    """
    pieces = [piece for piece in (remote / name).files() if piece.isdigit()]
    content = b""
    for number in range(len(pieces)):
        piece = (remote / name / f"{number:05d}").read()
        if piece is None:
            raise StorageError(f"{remote / name}: piece {number:05d} is missing; restore it from a backup")
        content += piece
    return content


def _read_state(directory: Path) -> dict[str, Signature]:
    try:
        return read_json_object(directory / STATE)
    except (OSError, ValueError):
        return {}


def _signature(path: Path) -> Signature:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _whole_lines(path: Path) -> int:
    """Return the number of bytes of a log up to the end of its last whole line."""
    if not path.exists():
        return 0
    with path.open("rb") as log:
        end = log.seek(0, 2)
        while end:
            start = max(0, end - PIECE)
            log.seek(start)
            newline = log.read(end - start).rfind(b"\n")
            if newline >= 0:
                return start + newline + 1
            end = start
    return 0

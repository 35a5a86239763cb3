"""Ships what a directory holds to object storage, while the work that writes there goes on.

The directory is the truth; the storage follows it, at most `INTERVAL` seconds and one upload behind. A server that is
away holds nothing up: what it missed is shipped when it answers again.

    a file that is written atomically   shipped when it is new or changed, removed there when it is gone; it arrives
                                        before the lines of a log that speak of it
    a log that only grows               LOG/00000, LOG/00001, ...: pieces of PIECE bytes, of which only the last is ever
                                        written again; whole lines only (object storage cannot append)
    a file that says how far the log    read before the logs and shipped after them, so that it never speaks of lines
    was read                            that are not there
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from types import TracebackType

from tokconv.errors import StorageError
from tokconv.system.files import file_digest, write_text
from tokconv.system.storage import FIRST_WAIT, LONGEST_WAIT, Remote

INTERVAL = 5.0
PIECE = 1 << 20
STATE = ".mirror.json"
"""In the directory: what was shipped, by size and time, so that another process does not ship it again."""
SHA256 = ".sha256"

Signature = list[int]


class Mirror:
    """A daemon thread from construction to `close`.

    Args:
        directory: what is mirrored.
        remote: where to.
        files: the files to mirror, relative to the directory, in the order they are to arrive; asked at every look.
        logs: files that only grow, in the order they are to arrive. They are read in the opposite order: what the
            first holds is never behind what the second says.
        positions: files that say how far a log was read.
        digests: write NAME.sha256 beside every file, after it, as `sha256sum` writes it.
        may_write: asked before every look; false ends the mirroring, since somebody else writes there now.
        patience: seconds that leaving the context waits for what is left; a tenth of it after an error.
        again: what the user has to run when not everything arrived.
        on_message: told once, from the thread, when the server first fails.
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
        patience: float = 60.0,
        again: str = "--resume",
        on_message: Callable[[str], None] = print,
    ) -> None:
        self._directory, self._remote, self._files = Path(directory), remote, files
        self._logs, self._positions, self._digests = logs, positions, digests
        self._may_write, self._on_message = may_write, on_message
        self._shipped = _read_state(self._directory)
        self._offsets: dict[str, int] = dict.fromkeys(logs, 0)
        self._patience, self._again = patience, again
        self._error = ""
        self._told = False
        self._closing, self._abandoned = threading.Event(), threading.Event()
        self._done = False
        self._thread = threading.Thread(target=self._run, name=f"mirror to {remote}", daemon=True)
        self._thread.start()

    def __enter__(self) -> Mirror:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            self.close(self._patience)
            return
        try:
            self.close(self._patience / 10)
        except StorageError as late:
            # The first error is the one to raise; this one is not to be lost.
            self._on_message(str(late))

    def close(self, timeout: float) -> None:
        """Ship what is left, for at most `timeout` seconds.

        Raises:
            StorageError: not everything is there; what to do.
        """
        self._closing.set()
        self._thread.join(timeout)
        self._abandoned.set()
        if not self._done:
            raise StorageError(
                f"{self._remote}: not everything is there ({self._error or 'it took too long'}); it is kept in "
                f"{self._directory}, and {self._again} ships it"
            )

    def _run(self) -> None:
        wait = FIRST_WAIT
        while not self._abandoned.is_set():
            if not self._may_write():
                self._error = "somebody else writes there now"
                return
            # Read before the directory is: then everything written before close() is seen by the last look.
            closing = self._closing.is_set()
            try:
                self._ship()
            except (StorageError, OSError) as error:
                self._note(error)
                self._abandoned.wait(wait) if closing else self._closing.wait(wait)
                wait = min(2 * wait, LONGEST_WAIT)
                continue
            self._error, wait = "", FIRST_WAIT
            if closing:
                self._done = True
                return
            self._closing.wait(INTERVAL)

    def _ship(self) -> None:
        """One look at the directory."""
        positions = {name: content for name in self._positions if (content := _content(self._directory / name))}
        ends = {name: _whole_lines(self._directory / name) for name in reversed(self._logs)}
        # Before the lines that speak of them.
        present = self._ship_files()
        for name in self._logs:
            self._ship_log(name, ends[name])
        for name, content in positions.items():
            (self._remote / name).write(content)
        gone = [name for name in self._shipped if name not in present]
        if gone:
            self._remote.remove([*gone, *(f"{name}{SHA256}" for name in gone if self._digests)])
            for name in gone:
                del self._shipped[name]
            self._write_state()

    def _ship_log(self, name: str, end: int) -> None:
        """The pieces that grew since the last look."""
        if self._offsets[name] >= end:
            return
        with (self._directory / name).open("rb") as log:
            while self._offsets[name] < end:
                number = self._offsets[name] // PIECE
                stop = min((number + 1) * PIECE, end)
                log.seek(number * PIECE)
                (self._remote / name / f"{number:05d}").write(log.read(stop - number * PIECE))
                self._offsets[name] = stop

    def _ship_files(self) -> set[str]:
        present, shipped = set(), dict(self._shipped)
        try:
            for name in self._files():
                path = self._directory / name
                if not path.exists():
                    # Replaced or removed since it was listed: the next look sees what it became.
                    continue
                present.add(name)
                signature = _signature(path)
                if self._shipped.get(name) != signature:
                    (self._remote / name).upload(path)
                    if self._digests:
                        (self._remote / f"{name}{SHA256}").write(_sha256_line(path))
                    self._shipped[name] = signature
        finally:
            if self._shipped != shipped:
                self._write_state()
        return present

    def _write_state(self) -> None:
        write_state(self._directory, self._shipped)

    def _note(self, error: Exception) -> None:
        self._error = str(error)
        if not self._told:
            self._told = True
            self._on_message(f"{error}; the work goes on, and what is kept there is shipped later")


def write_state(directory: Path, shipped: dict[str, Signature]) -> None:
    """Remember what was shipped."""
    write_text(directory / STATE, json.dumps(shipped) + "\n")


def signatures(directory: Path, names: Iterable[str]) -> dict[str, Signature]:
    """What `Mirror` tells a changed file by, of files that came from the storage just now."""
    return {name: _signature(directory / name) for name in names}


def fetch_log(remote: Remote, name: str) -> bytes:
    """The log that a mirror shipped, its pieces put together; empty when there is none.

    Raises:
        StorageError: it cannot be read, or a piece is missing.
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
        state = json.loads((directory / STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return dict(state) if isinstance(state, dict) else {}


def _signature(path: Path) -> Signature:
    found = path.stat()
    return [found.st_size, found.st_mtime_ns]


def _content(path: Path) -> bytes | None:
    return path.read_bytes() if path.exists() else None


def _sha256_line(path: Path) -> bytes:
    return f"{file_digest(path)}  {path.name}\n".encode()


def _whole_lines(path: Path) -> int:
    """Bytes of a log up to the end of its last whole line."""
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

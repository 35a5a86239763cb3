"""Files and directories that appear whole or not at all: temporary name, fsync, rename."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
"""What a run may be called, and so its directory."""
NAME_RULE = "must be at most 64 letters, digits, '.', '_' or '-', beginning with a letter or a digit"

TORCH_COULD_NOT_WRITE = ("PytorchStreamWriter failed", "iostream error", "inline_container.cc")
"""Parts of torch's error messages; which one appears depends on where in the file the disk was full."""


def local_path(text: str | os.PathLike[str]) -> Path:
    """Return the path that a text names literally, with `~` as the home directory.

    A shell does not expand the `~` of `data.root=~/photos`. `~name` of an unknown user stays as it is, and so no such
    path is found, where `Path.expanduser` raises RuntimeError.
    """
    return Path(os.path.expanduser(text))  # noqa: PTH111 (see above)


def text_lines(path: Path) -> list[str]:
    """Return the lines of a text file that are not blank, stripped. Raises OSError, ValueError."""
    # Editors on Windows begin a file with a mark, which is no part of the first line.
    lines = path.read_text(encoding="utf-8-sig").splitlines()
    return [line.strip() for line in lines if line.strip()]


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a temporary name next to `path`; if the block succeeds, what was written there becomes `path`.

    Works for a file and for a directory (an older directory of that name is replaced). After an error nothing is left.
    Whoever may read a new file there may read what was written, whatever library wrote it.

    Raises:
        OSError: the disk is full or gone, even if safetensors or torch report that by an error of their own.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        yield temporary
        files = [file for file in (temporary.rglob("*") if temporary.is_dir() else [temporary]) if file.is_file()]
        _share(files, temporary.with_suffix(".mode.tmp"))
        for file in files:
            _fsync(file)
        # A file never replaces a directory: replace() refuses that, and the directory keeps its content.
        aside = path.with_name(f"{temporary.name}.old")
        if temporary.is_dir() and path.is_dir():
            # Moved, not removed: a kill between these lines loses neither directory.
            path.rename(aside)
        temporary.replace(path)
        _fsync(path.parent)
        if aside.is_dir():
            shutil.rmtree(aside)
    except Exception as error:
        if (number := _os_error(error)) is not None:
            raise OSError(number, os.strerror(number), str(path)) from error
        raise
    finally:
        if temporary.is_dir():
            shutil.rmtree(temporary)
        else:
            temporary.unlink(missing_ok=True)


def _os_error(error: Exception) -> int | None:
    """Return the errno inside an error of a library that raises kinds of its own; None if there is none."""
    if isinstance(error, OSError):
        return None
    found = re.search(r"\(os error (\d+)\)", str(error))
    if found is not None:
        return int(found[1])
    # torch.save reports that it could not write but not why; the reason is hardly ever anything but a full disk.
    unwritten = isinstance(error, RuntimeError) and any(part in str(error) for part in TORCH_COULD_NOT_WRITE)
    return errno.ENOSPC if unwritten else None


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8; bytes of a file name that are no UTF-8 are escaped."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="backslashreplace")


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically. Raises ValueError for NaN and infinity, which not every reader understands."""
    write_text(path, json.dumps(value, indent=2, allow_nan=False) + "\n")


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises OSError if it cannot be read, ValueError if the file holds something else."""
    value = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    return value


def file_digest(path: Path) -> str:
    """Return the sha256 of a file's content, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def new_numbered(parent: Path, name: str) -> Path:
    """Create and return the next free directory `NAME-NNN` in `parent`; concurrent processes get different ones."""
    number = max((n for n, _ in _numbered(parent, name)), default=0) + 1
    while True:
        path = parent / f"{name}-{number:03d}"
        try:
            path.mkdir(parents=True)
        except FileExistsError:
            number += 1
        else:
            return path


def newest_numbered(parent: Path, name: str) -> Path | None:
    """Return the directory `NAME-NNN` in `parent` with the highest number, or None."""
    return max(_numbered(parent, name), default=(0, None), key=lambda found: found[0])[1]


def number_of(numbered: str, name: str) -> int | None:
    """Return the number of a directory `NAME-NNN`; None for any other name."""
    match = re.fullmatch(re.escape(name) + r"-(\d{3,})", numbered)
    return None if match is None else int(match[1])


def _numbered(parent: Path, name: str) -> Iterator[tuple[int, Path]]:
    for path in parent.glob("*"):
        number = number_of(path.name, name)
        if number is not None and path.is_dir():
            yield number, path


def _share(files: Sequence[Path], new: Path) -> None:
    """Give files that their owner alone may use, as safetensors writes them, the permissions of a `new` file."""
    private = [file for file in files if file.stat().st_mode & 0o777 == 0o600]
    if not private:
        return
    try:
        new.touch()
        mode = new.stat().st_mode
    finally:
        new.unlink(missing_ok=True)
    for file in private:
        # A file system without permissions refuses to change them.
        with suppress(OSError):
            file.chmod(mode & 0o777)


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)

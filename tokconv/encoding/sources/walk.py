"""Finding files in folders: hidden ones are left out, links are followed, no folder is read twice."""

from __future__ import annotations

import heapq
import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from tokconv.errors import DataError

# macOS, Synology, ext4 and Windows put these beside the files of a user; some hold thumbnails of the images.
SYSTEM_FOLDERS = {"__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
MAX_LISTED = 5
"""Names that a sentence lists before it only counts."""


@dataclass(frozen=True)
class Tree:
    """What a walk found. All paths are relative to the root, with slashes, and sorted."""

    files: tuple[str, ...]
    """The files that end in one of the suffixes."""
    ignored: tuple[str, ...]
    """All other files."""
    repeated: tuple[tuple[str, str], ...]
    """(folder, where it was read before): it was reached a second time, through a link. A link to a folder above has
    the latter empty."""


def walk(
    root: Path,
    suffixes: tuple[str, ...],
    folders: Sequence[str] = ("",),
    goes_first: Callable[[str], bool] = lambda name: False,
) -> Tree:
    """Find the files below some folders of `root`; a link counts like what it leads to.

    A folder that is reached twice belongs to its own place rather than to a link, and of two links to the one that
    sorts first. A link to a folder above itself is a loop, and is not followed.

    Args:
        suffixes: in lower case; those of files may have any case.
        folders: relative to the root; all of it by default.
        goes_first: says whether what lies below a first-level folder of this name, links included, is read before the
            rest, and so belongs there.

    Raises:
        DataError: a folder cannot be listed.
    """
    files: list[str] = []
    ignored: list[str] = []
    repeated: list[tuple[str, str]] = []
    seen: dict[str, str] = {}
    waiting: list[tuple[bool, bool, str, str]] = []

    def add(key: str, is_link: bool, place: str) -> None:
        heapq.heappush(waiting, (not goes_first(key.partition("/")[0]), is_link, key, place))

    for folder in folders:
        add(folder, bool(folder) and (root / folder).is_symlink(), os.path.realpath(root / folder))
    while waiting:
        _, _, key, place = heapq.heappop(waiting)
        if place in seen:
            repeated.append((key, seen[place]))
            continue
        seen[place] = key
        for entry in list_folder(root / key):
            child = f"{key}/{entry.name}" if key else entry.name
            if not is_folder(entry):
                (files if entry.name.lower().endswith(suffixes) else ignored).append(child)
            elif not entry.is_symlink():
                add(child, False, f"{place.rstrip(os.sep)}{os.sep}{entry.name}")
            elif _leads_above(target := os.path.realpath(entry.path), place):
                repeated.append((child, seen.get(target, "")))
            else:
                add(child, True, target)
    return Tree(tuple(sorted(files)), tuple(sorted(ignored)), tuple(sorted(repeated)))


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return the sorted entries of a folder, without hidden ones and those of the system.

    Raises:
        DataError: it cannot be listed.
    """
    try:
        with os.scandir(folder) as entries:
            found = [entry for entry in entries if not _is_hidden(entry.name)]
    except OSError as error:
        raise DataError(
            f"data.root: the folder {str(folder)!r} cannot be read ({error.strerror}); make it readable, or move it "
            "away"
        ) from error
    return sorted(found, key=lambda entry: entry.name)


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def count_suffixes(files: Iterable[str]) -> str:
    """Return how many files end in what, the most frequent first: "12 .heic, 1 .txt"; empty without files."""
    counts = Counter(PurePosixPath(file).suffix.lower() for file in files).most_common()
    named = [f"{count} {suffix or 'without a suffix'}" for suffix, count in counts[: 2 * MAX_LISTED]]
    rest = sum(count for _, count in counts[2 * MAX_LISTED :])
    return ", ".join([*named, *([f"{rest} others"] if rest else [])])


def listed(names: Sequence[str]) -> str:
    """Return the names, the first few of many, in one line."""
    more = len(names) - MAX_LISTED
    return ", ".join([*names[:MAX_LISTED], *([f"{more} more"] if more > 0 else [])])


def _is_hidden(name: str) -> bool:
    return name.startswith(".") or name.lower() in SYSTEM_FOLDERS


def _leads_above(target: str, place: str) -> bool:
    return place == target or place.startswith(target.rstrip(os.sep) + os.sep)

"""How a folder is arranged: which of its files are for training, which are held out, and which are left out.

Folders with the names of splits are never taken for classes where that would put held-out images among those of the
training: they declare the split, or are refused.
"""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

from tokconv.encoding.sources.splits import Splits, choose_splits, read_split, split_notes, split_pairs
from tokconv.encoding.sources.walk import Tree, count_suffixes, listed, walk
from tokconv.errors import DataError

_SHARD = re.compile(r"[-_. ]*\d+(?:[-_ ]?of[-_ ]?\d+)?$")


class Part(NamedTuple):
    """Files that belong to one split."""

    name: str
    """The first-level name that they share; "" if the part is the whole folder."""
    split: str | None
    """train or val; None if the folder declares no split."""
    files: tuple[str, ...]


class Layout(NamedTuple):
    """What is read of a folder."""

    parts: tuple[Part, ...]
    """The training images first; the whole folder, or its only split, is a single part."""
    notes: tuple[str, ...]
    """What a user should know: where the splits come from, what was left out, ignored and not followed."""


def find_files(root: Path, suffixes: tuple[str, ...]) -> Tree:
    """Find the files of a folder that `arrange` is to arrange. Raises DataError as `walk`."""
    # Splits are often links into a folder beside them that holds everything.
    return walk(root, suffixes, goes_first=lambda name: read_split(name) is not None)


def arrange(root: Path, tree: Tree, what: str, *, files_are_splits: bool = False) -> Layout:
    """Return which files below `root` to use.

    Args:
        tree: from `find_files`.
        what: what the files hold, in the plural, for sentences.
        files_are_splits: a file may be a whole split by its name, as `train.npy` and `test-00000-of-00002.npy` are.

    Raises:
        DataError: the names of splits stand where held-out images could be taken for training images.
    """
    levels = _levels(tree.files, files_are_splits)
    splits = choose_splits(levels.names[""])
    if splits is not None and (splits.train is None or splits.held_out is None):
        if splits.left_out or "" in levels.loose:
            splits = None
        else:
            _check_other_split(root, tree, splits, what)
    if splits is None:
        _check_level(root, levels, "")
    declared = splits is not None and None not in splits[:2]
    _check_below(root, levels, splits, declared=declared)
    return lay_out(tree, splits, what, files_are_splits=files_are_splits)


def lay_out(tree: Tree, splits: Splits | None, what: str, *, files_are_splits: bool = False) -> Layout:
    """Return which files to use, for splits that are known. Raises DataError if a link joins the two."""
    _check_links(tree, splits)
    return Layout(_parts(tree, splits, files_are_splits), _notes(tree, splits, what, files_are_splits))


class _Levels(NamedTuple):
    """What lies directly in each folder, as far as it holds files at any depth; folders relative to the root."""

    names: Mapping[str, set[str]]
    """Names of folders, and of files that can be splits."""
    loose: set[str]
    """Folders with files directly in them that cannot be splits."""


def _parts(tree: Tree, splits: Splits | None, files_are_splits: bool) -> tuple[Part, ...]:
    if splits is None:
        return (Part("", None, tree.files),)
    by_name: dict[str, list[str]] = defaultdict(list)
    for file in tree.files:
        by_name[_top(file) or (_stem(file) if files_are_splits else "")].append(file)
    sides = [(name, split) for name, split in ((splits.train, "train"), (splits.held_out, "val")) if name is not None]
    return tuple(Part(name, split if len(sides) == 2 else None, tuple(by_name[name])) for name, split in sides)


def _top(path: str) -> str:
    """Return the first-level folder of a path; "" if it has none."""
    return path.partition("/")[0] if "/" in path else ""


def _stem(name: str) -> str:
    """Return a file's name without its suffix and the number of a shard."""
    stem = name.rpartition(".")[0]
    return _SHARD.sub("", stem) or stem


def _levels(files: Iterable[str], files_are_splits: bool) -> _Levels:
    names: dict[str, set[str]] = defaultdict(set)
    loose: set[str] = set()
    for file in files:
        folder, _, name = file.rpartition("/")
        if files_are_splits:
            names[folder].add(_stem(name))
        else:
            loose.add(folder)
        while folder:
            folder, _, name = folder.rpartition("/")
            if name in names[folder]:
                break
            names[folder].add(name)
    names[""]
    return _Levels(names, loose)


def _check_level(root: Path, levels: _Levels, folder: str) -> None:
    """Refuse a folder whose contents may be splits, but do not form a pair. Raises DataError."""
    names = levels.names[folder]
    where = str(root / folder)
    found = [split for split in map(read_split, sorted(names)) if split is not None]
    if len(split_pairs(names)) > 1:
        raise DataError(
            f"data.root: {where!r} holds several pairs of splits ({listed([split.name for split in found])}); keep one "
            "pair there, named train and val, and move the others away"
        )
    held_out = [split for split in found if not split.is_train]
    train = [split for split in found if split.is_train]
    certain = [split for split in held_out if split.is_plain] or (
        held_out if any(split.is_plain for split in train) or (train and len(found) == len(names)) else []
    )
    if certain and (len(names) > 1 or folder in levels.loose):
        name = certain[0].name
        raise DataError(
            f"data.root: {name!r} in {where!r} seems to be held-out data, but the rest is not a training split. Put "
            f"the data to train on into a folder train beside it; or move {name!r} away; or rename it if it is a class"
        )
    nested = [split.name for split in train if split.is_plain and split.name in levels.names]
    if nested and not folder and len(names) > 1:
        others = listed([f"{name}/" for name in sorted(names - {nested[0]})])
        raise DataError(
            f"data.root: {where!r} holds {nested[0]}/ with folders of its own beside {others}; move the others away if "
            f"they are no classes, or rename {nested[0]}/ if it is one"
        )


def _check_below(root: Path, levels: _Levels, splits: Splits | None, *, declared: bool) -> None:
    """Refuse splits that lie deeper than at the top. Raises DataError."""
    left_out = () if splits is None else splits.left_out
    below = [folder for folder in sorted(levels.names) if folder and _top(f"{folder}/") not in left_out]
    places = [folder for folder in below if split_pairs(levels.names[folder])]
    if places:
        found = choose_splits(levels.names[places[0]])
        names = "several splits" if found is None else f"{found.train} and {found.held_out}"
        where = listed([f"{place}/" for place in places])
        # Whether the folder holds everything, as after unpacking an archive.
        alone = all(levels.names[above] == {name} and above not in levels.loose for above, name in _steps(places[0]))
        advice = (
            f"give that folder: {shlex.quote(f'data.root={root / places[0]}')}"
            if alone
            else "give one such folder in data.root, or arrange everything as train/CLASS/ and val/CLASS/"
        )
        raise DataError(f"data.root: {str(root)!r} holds {names} not at its top but in {where}; {advice}")
    if not declared:
        for folder in below:
            _check_level(root, levels, folder)


def _steps(folder: str) -> list[tuple[str, str]]:
    """Return (folder above, name) of a folder and of every one above it."""
    names = folder.split("/")
    return [("/".join(names[:depth]), name) for depth, name in enumerate(names)]


def _check_other_split(root: Path, tree: Tree, splits: Splits, what: str) -> None:
    """Refuse held-out files whose training split has files, but none to read. Raises DataError."""
    unread = {_top(file) for file in tree.ignored} - {""}
    all_splits = choose_splits({*unread, *filter(None, splits[:2])})
    if splits.train is None and all_splits is not None and all_splits.train is not None:
        count = count_suffixes(file for file in tree.ignored if _top(file) == all_splits.train)
        raise DataError(
            f"data.root: {all_splits.train}/ in {str(root)!r} holds no {what}, only {count}, and {splits.held_out}/ is "
            f"held-out data; convert the files, or move {all_splits.train}/ away"
        )


def _check_links(tree: Tree, splits: Splits | None) -> None:
    """Refuse a split that is, or holds, a link to another one. Raises DataError."""
    for link, target in tree.repeated:
        ours, theirs = (_side(_top(f"{path}/"), splits) for path in (link, target))
        if target and ours and ours != theirs and (theirs or "/" not in link):
            raise DataError(
                f"data.root: {link} leads to {target}, which is read there already, so that training and held-out data "
                "would be the same; make it a folder of its own, or remove it"
            )


def _side(name: str, splits: Splits | None) -> str | None:
    """Return train or val for the name of a split; None for others."""
    found = read_split(name)
    if found is None or not (found.is_plain or (splits is not None and name in splits[:2])):
        return None
    return "train" if found.is_train else "val"


def _notes(tree: Tree, splits: Splits | None, what: str, files_are_splits: bool) -> tuple[str, ...]:
    beside = 0 if files_are_splits else sum("/" not in file for file in tree.files)
    notes = [] if splits is None else list(split_notes(splits, what, beside))
    left_out = () if splits is None else splits.left_out
    ignored = [file for file in tree.ignored if _top(file) not in left_out]
    if ignored:
        notes.append(f"ignored by suffix: {count_suffixes(ignored)}")
    links = [link for link, _ in tree.repeated if _top(f"{link}/") not in left_out]
    if links:
        notes.append(f"not read twice, though links lead there: {listed(links)}")
    return tuple(notes)

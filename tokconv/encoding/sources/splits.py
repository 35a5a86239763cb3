"""Names of splits, alike for folders, files of tokens and the splits of a Hugging Face data set.

A name is that of a split if one of its words is: `val`, `Validation`, `test_set`, `train2017` and `seg_train` are.
Names belong together if their other words are equal.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from tokconv.encoding.sources.walk import listed

TRAIN = ("train", "training", "trainval")
HELD_OUT = (
    *("validation", "valid", "val", "dev"),
    *("test", "testing", "tests", "eval", "evaluation", "holdout", "heldout"),
)
"""Names of held-out images; of several, the first that exists is used."""
# Words that say what a split consists of, and do not tell two pairs of splits apart.
PLAIN_WORDS = {
    *("set", "split", "folder", "data", "dataset", "image", "images", "img", "imgs", "photos", "pictures"),
    *("tokens", "features", "feats", "embeddings"),
}
_WORD = re.compile(r"[^\W\d_]+|\d+")
_INNER_CAPITAL = re.compile(r"(?<=[a-z])(?=[A-Z])")
_TWO_WORDS = re.compile(r"\b(hold|held)[-_ ]out\b", re.IGNORECASE)


class SplitName(NamedTuple):
    """A name that is that of a split."""

    name: str
    is_train: bool
    rank: int
    """Position in TRAIN or HELD_OUT."""
    others: tuple[str, ...]
    """Its other words; `PLAIN_WORDS` are left out."""

    @property
    def is_plain(self) -> bool:
        """Whether it has no other words than numbers, so that it can hardly mean anything else."""
        return all(word.isdigit() for word in self.others)


class Splits(NamedTuple):
    """The splits to use; at least one of the first two is given."""

    train: str | None
    held_out: str | None
    left_out: tuple[str, ...]
    """All other names, sorted."""


def read_split(name: str) -> SplitName | None:
    """Return what a name says about a split; None if it is no split's name, or says two things."""
    words = _WORD.findall(_INNER_CAPITAL.sub(" ", _TWO_WORDS.sub(r"\1out", name)).casefold())
    words = [part for word in words for part in _without_set(word)]
    found = [word for word in words if word in TRAIN or word in HELD_OUT]
    if len(found) != 1:
        return None
    is_train = found[0] in TRAIN
    others = tuple(word for word in words if word != found[0] and word not in PLAIN_WORDS)
    return SplitName(name, is_train, (TRAIN if is_train else HELD_OUT).index(found[0]), others)


def _without_set(word: str) -> list[str]:
    """Cut "trainset" in two."""
    stem = word.removesuffix("set")
    return [stem, "set"] if stem in TRAIN or stem in HELD_OUT else [word]


def choose_splits(names: Iterable[str]) -> Splits | None:
    """Return which of the names is the training split and which is held out.

    Names without other words go first. Without any of those, names with the same other words are used if there are a
    training split and a held-out one.

    Returns:
        None if no names are those of splits, or several pairs could be meant (`split_pairs`).
    """
    names = sorted(names)
    groups = _group(names)
    pairs = split_pairs(names)
    others = () if () in groups else pairs[0] if len(pairs) == 1 else None
    if others is None:
        return None
    best = {
        side: min((found for found in groups[others] if found.is_train is side), default=None, key=_by_rank)
        for side in (True, False)
    }
    train, held_out = (None if found is None else found.name for found in (best[True], best[False]))
    return Splits(train, held_out, tuple(name for name in names if name not in (train, held_out)))


def split_notes(splits: Splits, what: str, beside: int = 0) -> tuple[str, ...]:
    """Return sentences about which splits are used, and which are not.

    Args:
        what: what they hold, in the plural.
        beside: how many of these lie beside the splits, and belong to none.
    """
    if splits.train is None or splits.held_out is None:
        used = f"{splits.train or splits.held_out} is the only split in use; the held-out {what} are drawn from it"
    else:
        used = f"training {what} from {splits.train}, held-out {what} from {splits.held_out}"
    left_out = [
        *splits.left_out,
        *([f"{beside} {what if beside > 1 else what[:-1]} beside the splits"] if beside else []),
    ]
    return (used, *([f"left out: {listed(left_out)}"] if left_out else []))


def split_pairs(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the other words of every group of names that has a training split and a held-out one."""
    return [others for others, found in _group(names).items() if len({name.is_train for name in found}) == 2]


def _group(names: Iterable[str]) -> dict[tuple[str, ...], list[SplitName]]:
    groups: dict[tuple[str, ...], list[SplitName]] = defaultdict(list)
    for found in map(read_split, names):
        if found is not None:
            groups[found.others].append(found)
    return groups


def _by_rank(found: SplitName) -> tuple[int, str]:
    return found.rank, found.name

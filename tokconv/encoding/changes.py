"""Whether the images of a store are still those that it was encoded from, and the names of those that are not.

A second look costs a stat per file. Where size and time are those of the record, only a few images are read; where
they differ, the content decides, so that a copied or touched data set is the same data set.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from tokconv.encoding.job import EncodeJob
from tokconv.encoding.sources.base import ImageItem, ImageSource
from tokconv.errors import StoreError
from tokconv.store.contents import FILES, read_digests, read_stats, write_stats
from tokconv.store.format import PROBES
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import progress_line

NUM_READ = 32
"""Images that are read although size and time of their files are those of the record."""
MAX_NAMED = 3
READERS, READ_AT_ONCE = 8, 1024
NO_RECORD = torch.tensor([-2, -2])
"""No file has this size and time."""
UNTIL_NOW = (
    "note: an earlier tokconv wrote this store without digests of its images; changes are noticed from now on, by size "
    "and time"
)


SAME, OTHER, UNKNOWN, UNREADABLE = "same", "other", "unknown", "unreadable"
"""What comparing the content of an image with its digest finds; UNKNOWN if an earlier version wrote no digest."""


@dataclass(frozen=True)
class Changes:
    """What differs between a store and its data set.

    items: source indices of the stored images whose content is another one.
    text: what changed, for a message; "" if nothing did.
    note: what the user should know although nothing changed.
    """

    items: Sequence[int] = ()
    text: str = ""
    note: str = ""


def find_changes(job: EncodeJob, shards: Mapping[int, Path], skipped: Collection[int]) -> Changes:
    """Compare the images of some shards of a store with the source of the job; if nothing changed, record that.

    Args:
        shards: files of the shards, by number.
        skipped: source indices of the images that are not stored.
    """
    source, settings = job.source, job.settings
    left_out = set(skipped)
    stored = [item for number in sorted(shards) for item in settings.shard_items(number) if item not in left_out]
    now, before = source.stats(range(len(source.items))), read_stats(job.path, len(source.items))
    if before is None and stored and not _probes_agree(job):
        return Changes(text="the content of some images changed")
    differs = torch.ones(len(now), dtype=torch.bool) if before is None else (now != before).any(1)
    probes = set(stored[:: max(1, len(stored) // NUM_READ)])
    wanted = [item for item in stored if differs[item] or item in probes]
    found: dict[str, list[int]] = {SAME: [], OTHER: [], UNKNOWN: [], UNREADABLE: []}
    with progress_line("comparing images with the store") as line:
        for done, (item, what) in enumerate(_compare(source, settings.shard_size, shards, wanted), start=1):
            found[what].append(item)
            if len(wanted) > READ_AT_ONCE:
                line(done, len(wanted))
    by_time = [] if before is None else [item for item in found[UNKNOWN] if differs[item]]
    if changed := sorted([*found[OTHER], *by_time]):
        text = f"{_named([source.items[item] for item in changed])} of {len(stored)} images changed"
        if by_time:
            text += (
                "; an earlier tokconv wrote the store without digests, so size and time decide: if the images are the "
                f"same, remove {FILES} from the store"
            )
        return Changes(changed, text)
    # What could not be read is looked at again the next time.
    now[found[UNREADABLE]] = NO_RECORD if before is None else before[found[UNREADABLE]]
    if before is None or not torch.equal(now, before):
        write_stats(job.path, now)
    return Changes(note=UNTIL_NOW if before is None and found[UNKNOWN] else "")


def _probes_agree(job: EncodeJob) -> bool:
    """Return whether the store of an earlier version, which knows the content of some images only, has those."""
    before = {key: value for key, value in job.settings.source.items() if f"source.{key}" in PROBES}
    return not before or before.items() <= job.source.probed_identity().items()


def _compare(
    source: ImageSource, shard_size: int, shards: Mapping[int, Path], items: Sequence[int]
) -> Iterator[tuple[int, str]]:
    """Yield each item, with what comparing its content finds."""

    def compare(pair: tuple[int, bytes | None]) -> tuple[int, str]:
        item, digest = pair
        try:
            return item, UNKNOWN if digest is None else SAME if source.content(item) == digest else OTHER
        except (OSError, ValueError):
            return item, UNREADABLE

    pairs = (
        pair
        for number, group in itertools.groupby(items, key=lambda item: item // shard_size)
        for own in [list(group)]
        for pair in zip(own, read_digests(shards[number], own), strict=True)
    )
    with ThreadPoolExecutor(READERS) as pool:
        while batch := list(itertools.islice(pairs, READ_AT_ONCE)):
            yield from pool.map(compare, batch)


def check_same_images(job: EncodeJob) -> None:
    """Check that a complete store has the images of the job by name, class and split, if only those can differ.

    Raises:
        StoreError: it has others; the message names some that were added, removed or moved.
    """
    store = TokenStore.open(job.path)
    before, wanted = store.settings.source, job.settings.source
    same = all(before.get(key) == wanted.get(key) for key in ("name", "subset", "views"))
    if not same or store.settings.encoder != job.settings.encoder or before.get("keys") == wanted.get("keys"):
        return
    items = {item.key: item for item in job.source.items}
    keys = set(store.keys)
    added = [item for key, item in items.items() if key not in keys]
    removed = [ImageItem(key) for key in store.keys if key not in items]
    val = set(store.val_indices.tolist())
    labels = [-1] * store.num_images if store.labels is None else store.labels.tolist()
    moved = [
        item
        for place, (key, label) in enumerate(zip(store.keys, labels, strict=True))
        if (item := items.get(key)) is not None
        and (
            _class_of(store.class_names, label) != _class_of(job.source.class_names, item.label)
            or item.split not in (None, "val" if place in val else "train")
        )
    ]
    kinds = {"added": added, "removed": removed, "of another class or split": moved}
    found = ", ".join(f"{_named(part)} {kind}" for kind, part in kinds.items() if part)
    if added and store.skipped:
        found += f"; {len(store.skipped)} that could not be read count as added"
    raise StoreError(other_data(job, found or "the declared split changed"))


def other_data(job: EncodeJob, text: str) -> str:
    """Return the message for a store at a named place whose data set changed."""
    return (
        f"data.store: {job.place} was encoded from another state of the data set ({text}); choose another data.store "
        "to encode what it is now, restore the data set, or remove what is there"
    )


def _class_of(names: Sequence[str], label: int | None) -> str | None:
    return None if label is None or label < 0 else names[label]


def _named(items: Sequence[ImageItem]) -> str:
    """Return how many images these are, with the names of the first."""
    names = ", ".join(item.key for item in items[:MAX_NAMED])
    return f"{len(items)} ({names}{', ...' if len(items) > MAX_NAMED else ''})"

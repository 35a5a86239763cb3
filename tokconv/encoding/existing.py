"""Which store a job leads to: the one that is there, if its images are still those of the job, or a new one.

A store at a named place (`data.store`) whose data set changed is refused. At the default place, a changed data set gets
a store of its own, PLACE-2, PLACE-3 and so on, and the stores of its earlier states stay.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from tokconv.config.tree import Config
from tokconv.encoding.changes import check_same_images, find_changes, other_data
from tokconv.encoding.job import STORES, EncodeJob, default_place
from tokconv.errors import StoreError, printable
from tokconv.store.format import INDEX, SETTINGS, StoreSettings, read_json
from tokconv.store.reader import TokenStore
from tokconv.store.remote import StorePlace, find_fingerprint, find_remote, stored_at
from tokconv.system.files import local_path
from tokconv.system.storage import check_url, is_url


def settle(job: EncodeJob) -> tuple[EncodeJob, TokenStore | None]:
    """Return the job with the place of its store, and the store if it is complete there.

    Prints one line if a data set changed and therefore leads to a new store.

    Raises:
        StoreError: the named store has other settings or images, or a store is damaged.
        StorageError: the store is at a URL that cannot be used.
    """
    if job.named:
        found = _with_stored_settings(job)
        store = _open(found)
        if store is not None and (text := _changes(found, store)):
            raise StoreError(other_data(found, text))
        return found, store
    numbered = list(_numbered(job))
    said = ""
    for found in [*reversed(numbered), *_of_an_earlier_version(job, numbered)]:
        store = _open(found)
        if store is None or not (text := _changes(found, store)):
            return found, store
        said = said or f"the data set changed since {found.place} was encoded: {text}"
    new = _number(job, len(numbered) + 1)
    if said:
        print(f"{printable(said)}; it gets a store of its own, {printable(new.place)}, and the other one stays")
    return new, None


def planned(job: EncodeJob) -> tuple[EncodeJob, bool]:
    """Return the job with the place of its store, and whether it is complete there; no store is fetched.

    Raises as `settle`.
    """
    if job.url is not None:
        return job, job.is_complete()
    job, store = settle(job)
    return job, store is not None


def _number(job: EncodeJob, number: int) -> EncodeJob:
    return job if number == 1 else job.at(f"{job.place}-{number}")


def _numbered(job: EncodeJob) -> Iterator[EncodeJob]:
    """Yield the job at each of its default places that is in use, oldest first."""
    for number in itertools.count(1):
        if _stored_settings(found := _number(job, number)) is None:
            return
        yield _with_stored_settings(found)


def _of_an_earlier_version(job: EncodeJob, numbered: list[EncodeJob]) -> list[EncodeJob]:
    """Return the job at the place that an earlier tokconv gave it, if that is in use."""
    source = {} if numbered else job.source.probed_identity()
    if numbered or source == job.settings.source:
        return []
    settings = replace(job.settings, source=source)
    found = job.at(default_place(job.place.rpartition("/")[0], job.source, job.spec, settings), settings)
    return [] if _stored_settings(found) is None else [found]


def _stored_settings(job: EncodeJob) -> dict[str, Any] | None:
    """Return the JSON of the settings of the store at the place of a job; None if there is none."""
    if job.url is not None:
        return stored_at(job.url)
    if (job.path / SETTINGS).exists():
        return read_json(job.path / SETTINGS)
    return read_json(job.path / INDEX).get("settings", {}) if (job.path / INDEX).exists() else None


def _with_stored_settings(job: EncodeJob) -> EncodeJob:
    """Return the job with the settings that its store has, if an earlier version wrote more into them."""
    try:
        stored = StoreSettings.from_json(_stored_settings(job) or {})
    except (KeyError, TypeError, ValueError):
        return job
    return job if stored.difference(job.settings) is not None else job.at(job.place, stored)


def _open(job: EncodeJob) -> TokenStore | None:
    """Return the complete store at the place of a job, or None. Raises StoreError if it has other settings."""
    if job.url is not None:
        return find_remote(job.url, job.settings)
    try:
        return TokenStore.find(job.path, job.settings)
    except StoreError:
        if (job.path / INDEX).exists():
            check_same_images(job)
        raise


def _changes(job: EncodeJob, store: TokenStore) -> str:
    """Return what changed in the data set of a store, "" for nothing."""
    here = replace(job, path=store.path, url=None, settings=store.settings)
    changes = find_changes(here, dict(enumerate(store.shard_paths())), [image.item for image in store.skipped])
    if changes.note:
        print(f"{printable(store.path)}: {printable(changes.note)}")
    return changes.text


def resumed_store(config: Config, fingerprint: str | None, stores: str | Path = STORES) -> TokenStore | None:
    """Return the store that a run to resume was trained on; None if it is not where the config puts its store.

    Neither images nor tower are looked at: what the run reads are the tokens.

    Raises:
        StoreError: the store is damaged.
        StorageError: it is at a URL that cannot be used.
    """
    place = config.data.store
    if fingerprint is None:
        return None
    if place is None:
        if is_url(stores):
            return find_fingerprint(str(stores), fingerprint)
        return TokenStore.with_fingerprint(Path(stores), fingerprint)
    try:
        if is_url(place):
            return StorePlace(check_url("data.store", place), fingerprint).open()
        return TokenStore.open(local_path(place), fingerprint=fingerprint)
    except StoreError:
        # Whoever encodes at this place next gets the reason.
        return None

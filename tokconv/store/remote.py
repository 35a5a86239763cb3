"""A token store at a URL, read through a copy on this node: fetched once, verified by hash, mapped like any other.

    TOKCONV_CACHE/stores/FINGERPRINT/      the copy; `index.json` arrives last, so that a copy with an index is whole
    TOKCONV_CACHE/stores/FINGERPRINT.lock  two processes at once: one fetches, the other waits
    TOKCONV_CACHE/stores/encoding-KEY/     where a store is encoded; its shards are uploaded as they finish

What is computed from a store (`derived/`) stays with the copy, so each node computes it once. The URL holds the files
of an ordinary store and the sha256 of each shard, so that any machine can resume an interrupted encode.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from filelock import FileLock

from tokconv.errors import StoreError
from tokconv.store.contents import FILES
from tokconv.store.format import (
    INDEX,
    OLD_INDEX,
    SETTINGS,
    SHARD_NAME,
    StoreSettings,
    check_stored,
    digest,
)
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path, file_digest
from tokconv.system.storage import Remote, cache_dir, check_url, is_url, storage_advice
from tokconv.system.terminal import progress_line

DOWNLOADS = 8
"""Shards fetched at the same time."""


@dataclass(frozen=True)
class StorePlace:
    """Where a store is, for any process on any node: its directory or URL, and the fingerprint of what is there.

    Example:
        >>> StorePlace("s3://bucket/stores/digits", fingerprint).open()     # doctest: +SKIP
    """

    place: str
    fingerprint: str

    def open(self) -> TokenStore:
        """Open the store; if this node has a copy, the server is not asked.

        Raises:
            StoreError: the store is missing, damaged, or was replaced by another one.
            StorageError: the server refuses or does not answer.
        """
        if not is_url(self.place):
            return TokenStore.open(self.place, fingerprint=self.fingerprint)
        if (copy_of(self.fingerprint) / INDEX).exists():
            return open_fetched(copy_of(self.fingerprint), self.place)
        remote = Remote(self.place)
        if (remote / INDEX).read() is None:
            return open_remote(self.place)
        content = _index_of(remote, self.fingerprint)
        if content is None:
            raise StoreError(f"{self.place}: holds another store than before; encode to another place instead")
        return open_copy(remote, content)


def place_of(store: TokenStore) -> StorePlace:
    """Return the place of an open store."""
    return StorePlace(store.origin or str(store.path.resolve()), store.fingerprint)


def open_place(place: str | Path) -> TokenStore:
    """Open the store that a user names by a directory or a URL. Raises as `TokenStore.open` and `open_remote` do."""
    return open_remote(check_url("store", str(place))) if is_url(place) else TokenStore.open(place)


def stores_dir() -> Path:
    """Return where this node has its copies of stores."""
    return cache_dir() / "stores"


def copy_of(fingerprint: str) -> Path:
    """Return the directory of this node's copy of a store; it need not exist."""
    return stores_dir() / fingerprint


def staging_dir(url: str, settings: StoreSettings) -> Path:
    """Return where a store is encoded before all of it is at its URL."""
    return stores_dir() / f"encoding-{digest([url, settings.digest()])[:16]}"


def open_remote(url: str) -> TokenStore:
    """Open the store at a URL; fetch it if this node has no copy.

    Raises:
        StoreError: the store is missing or incomplete, or a shard arrived with another content than was written.
        StorageError: the server refuses or does not answer.
    """
    content = (Remote(url) / INDEX).read()
    if content is None:
        raise StoreError(
            f"there is no complete token store {url}; run: tokconv encode {shlex.quote(f'data.store={url}')}"
        )
    return open_copy(Remote(url), content)


def find_remote(url: str, settings: StoreSettings) -> TokenStore | None:
    """Return the complete store of these settings at a URL, fetched if this node has no copy; None if there is none.

    Raises as `encode_remote`.
    """
    with storage_advice("data.store"):
        content = find_index(url, settings)
        return None if content is None else open_copy(Remote(url), content)


def find_fingerprint(stores: str, fingerprint: str) -> TokenStore | None:
    """Return the store of this fingerprint among the stores below a URL, or None. Raises as `open_remote`."""
    for name in Remote(stores).folders():
        if (content := _index_of(Remote(stores) / name, fingerprint)) is not None:
            return open_copy(Remote(stores) / name, content)
    return None


def stored_at(url: str) -> dict[str, Any] | None:
    """Return the JSON of the settings of the store at a URL, finished or not; None if there is none."""
    with storage_advice("data.store"):
        content = (Remote(url) / SETTINGS).read()
    return None if content is None else parse_json(url, content)


def exists_remote(url: str, settings: StoreSettings) -> bool:
    """Return whether the complete store of these settings is at a URL; only its index is fetched."""
    with storage_advice("data.store"):
        return find_index(url, settings) is not None


def open_copy(remote: Remote, content: bytes) -> TokenStore:
    """Open this node's copy of the store with this index; fetch it if it is missing or unfinished."""
    index = parse_json(remote.url, content)
    fingerprint = digest(index)
    copy = copy_of(fingerprint)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            _fetch_missing(remote, copy, index)
            if (files := (remote / FILES).read()) is not None:
                with atomic_path(copy / FILES) as temporary:
                    temporary.write_bytes(files)
            with atomic_path(copy / INDEX) as temporary:
                temporary.write_bytes(content)
        return open_fetched(copy, remote.url)


def open_fetched(copy: Path, url: str) -> TokenStore:
    store = TokenStore.open(copy)
    store.origin = url
    return store


def _fetch_missing(remote: Remote, copy: Path, index: Mapping[str, Any]) -> None:
    """Fetch the missing shards; those that are there were verified before they got their names."""
    try:
        digests = {str(entry["name"]): str(entry["sha256"]) for entry in index["shards"]}
    except (KeyError, TypeError) as error:
        raise StoreError(f"{remote / INDEX}: damaged ({error!r}); remove it and encode again") from error
    for name in digests:
        if not SHARD_NAME.fullmatch(name):
            raise StoreError(f"{remote / INDEX}: {name!r} is not a shard's name; do not use this store")

    def fetch(name: str) -> None:
        with atomic_path(copy / name) as temporary:
            fetch_verified(remote / name, temporary, digests[name])

    missing = [name for name in digests if not (copy / name).exists()]
    in_parallel(fetch, missing, "fetching the token store's shards", already=len(digests) - len(missing))


def fetch_verified(remote: Remote, path: Path, sha256: str) -> None:
    remote.download(path)
    found = file_digest(path)
    if found != sha256:
        raise StoreError(
            f"{remote}: arrived with sha256 {found[:12]}..., but {sha256[:12]}... was written; it is not used, and the "
            "next try fetches it again. If that fails too, the object is damaged: remove that store and encode again"
        )


def in_parallel(work: Callable[[Any], None], items: list[Any], label: str, already: int = 0) -> None:
    """Work on several items at a time; raise the first error when those in progress have ended."""
    with progress_line(label) as line, ThreadPoolExecutor(DOWNLOADS) as pool:
        for done, _ in enumerate(pool.map(work, items), start=already + 1):
            line(done, already + len(items))


def parse_json(url: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{url}: holds no readable token store; remove what is there, or choose another place")
    return value


def find_index(url: str, settings: StoreSettings) -> bytes | None:
    """Return the index of the store at a URL, or None. Raises StoreError if it is of other settings."""
    content = (Remote(url) / INDEX).read()
    if content is not None:
        check_stored(url, parse_json(url, content).get("settings"), settings, "what is there")
    return content


def _index_of(remote: Remote, fingerprint: str) -> bytes | None:
    """Return the index of the version of this fingerprint at a URL; None if there is none."""
    content = (remote / INDEX).read()
    if content is None or digest(parse_json(remote.url, content)) == fingerprint:
        return content
    for name in remote.files():
        old = (remote / name).read() if fnmatch(name, OLD_INDEX) else None
        if old is not None and digest(parse_json(remote.url, old)) == fingerprint:
            return old
    return None

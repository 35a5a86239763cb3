"""A token store at a URL, read through a copy on this node: fetched once, verified by hash, then mapped as any other.

    TOKCONV_CACHE/stores/FINGERPRINT/      the copy; `index.json` arrives last, so that a copy with an index is whole
    TOKCONV_CACHE/stores/FINGERPRINT.lock  two processes at once: one fetches, the other waits
    TOKCONV_CACHE/stores/encoding-KEY/     where a store is encoded before it is whole; its shards leave as they finish

What is computed from a store (`derived/`) stays beside the copy, so each node computes it once. At the URL lie the
files of an ordinary store and, beside each shard, its sha256: an encode that was interrupted goes on anywhere.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from tokconv.errors import StoreError
from tokconv.store.format import (
    INDEX,
    SETTINGS,
    SHARD_NAME,
    StoreSettings,
    check_settings,
    digest,
    read_header,
    shard_name,
)
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path, file_digest, write_text
from tokconv.system.mirror import SHA256, Mirror
from tokconv.system.storage import Remote, cache_dir, check_url, is_url, storage_advice
from tokconv.system.terminal import progress_line

DOWNLOADS = 8
"""Shards under way at once."""
DRAIN_SECONDS = 600.0
"""How long the end of an encode waits for its last shards to arrive."""


@dataclass(frozen=True)
class StorePlace:
    """Where a store is, for any process on any node: its directory, or its URL and the fingerprint of what lies there.

    Example:
        >>> StorePlace("s3://bucket/stores/digits", fingerprint).open()     # doctest: +SKIP
    """

    place: str
    fingerprint: str

    def open(self) -> TokenStore:
        """Open it; a copy that this node has is opened without asking the server.

        Raises:
            StoreError: missing, damaged, or another store than it was.
            StorageError: the server refuses or does not answer.
        """
        if not is_url(self.place):
            return TokenStore.open(self.place)
        if (copy_of(self.fingerprint) / INDEX).exists():
            return _opened(copy_of(self.fingerprint), self.place)
        store = open_remote(self.place)
        if store.fingerprint != self.fingerprint:
            raise StoreError(f"{self.place}: holds another store than it did; encode to another place instead")
        return store


def place_of(store: TokenStore) -> StorePlace:
    """The place of an open store."""
    return StorePlace(store.origin or str(store.path.resolve()), store.fingerprint)


def open_place(place: str | Path) -> TokenStore:
    """The store that a user names by a directory or a URL. Raises as `TokenStore.open` and `open_remote`."""
    return open_remote(check_url("store", str(place))) if is_url(place) else TokenStore.open(place)


def stores_dir() -> Path:
    """Where this node keeps its copies of stores."""
    return cache_dir() / "stores"


def copy_of(fingerprint: str) -> Path:
    """The directory of this node's copy of a store; it need not exist."""
    return stores_dir() / fingerprint


def staging_dir(url: str, settings: StoreSettings) -> Path:
    """Where a store is encoded before it is whole at its URL."""
    return stores_dir() / f"encoding-{digest([url, settings.digest()])[:16]}"


def open_remote(url: str) -> TokenStore:
    """The store at a URL, fetched when this node has no copy.

    Raises:
        StoreError: there is none, it is incomplete, or a shard did not arrive as it was written.
        StorageError: the server refuses or does not answer.
    """
    content = (Remote(url) / INDEX).read()
    if content is None:
        raise StoreError(f"there is no complete token store {url}; run: tokconv encode data.store={url}")
    return _copied(Remote(url), content)


def find_remote(url: str, settings: StoreSettings) -> TokenStore | None:
    """The complete store of these settings at a URL, or None.

    Raises:
        StoreError: other settings, or as `open_remote`.
        StorageError: as `open_remote`.
    """
    content = (Remote(url) / INDEX).read()
    if content is None:
        return None
    _check(url, settings, _parsed(url, content).get("settings"))
    return _copied(Remote(url), content)


def exists_remote(url: str, settings: StoreSettings) -> bool:
    """Whether the complete store of these settings is at a URL; nothing is fetched but its index."""
    with storage_advice("data.store"):
        content = (Remote(url) / INDEX).read()
    if content is not None:
        _check(url, settings, _parsed(url, content).get("settings"))
    return content is not None


def encode_remote(url: str, settings: StoreSettings, encode: Callable[[Path], TokenStore]) -> TokenStore:
    """The store of these settings at a URL, encoded to it when it is not there.

    It is encoded on this node, in `staging_dir`, and each shard leaves as soon as it is whole; the index leaves last.
    What an interrupted encode left at the URL, from whichever machine, is fetched instead of encoded again.

    Args:
        encode: encodes to a directory, where some shards may be already.

    Raises:
        StoreError: another store is there.
        StorageError: the server refuses or does not answer; nothing is encoded then.
    """
    remote, staging = Remote(url), staging_dir(url, settings)
    staging.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{staging}.lock"):
        with storage_advice("data.store"):
            store = find_remote(url, settings)
        if store is not None:
            return store
        remote.check_writable("data.store")
        _fetch_unfinished(remote, staging, settings)
        with Mirror(
            staging,
            remote,
            files=lambda: [SETTINGS, *_shards_in(staging)],
            digests=True,
            drain_seconds=DRAIN_SECONDS,
            resume_with="the same command",
        ):
            store = encode(staging)
        (remote / INDEX).upload(staging / INDEX)
        return _moved(staging, store.fingerprint, url)


def _moved(staging: Path, fingerprint: str, url: str) -> TokenStore:
    """What was encoded here is this node's copy."""
    copy = copy_of(fingerprint)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            with atomic_path(copy) as temporary:
                staging.rename(temporary)
        else:
            shutil.rmtree(staging)
        return _opened(copy, url)


def _fetch_unfinished(remote: Remote, staging: Path, settings: StoreSettings) -> None:
    """The whole shards that an interrupted encode left at the URL."""
    content = (remote / SETTINGS).read()
    if content is None:
        return
    stored = _parsed(remote.url, content)
    _check(remote.url, settings, stored)
    if not (staging / SETTINGS).exists():
        write_text(staging / SETTINGS, json.dumps(settings.to_json(), indent=2) + "\n")
    check_settings(staging, settings)
    there = remote.files()
    wanted = [
        number
        for number in range(settings.num_shards)
        if {shard_name(number), f"{shard_name(number)}{SHA256}"} <= there.keys()
        and not (staging / shard_name(number)).exists()
    ]

    def fetch(number: int) -> None:
        name = shard_name(number)
        told = (remote / f"{name}{SHA256}").read() or b""
        try:
            with atomic_path(staging / name) as temporary:
                _fetch(remote / name, temporary, told.decode("ascii", "replace").split(" ")[0])
                read_header(temporary, settings, number)
        except StoreError as error:
            print(f"{error}; it is encoded again")

    _at_once(fetch, wanted, "fetching shards")


def _copied(remote: Remote, content: bytes) -> TokenStore:
    """This node's copy of the store with this index, fetched when it is missing or unfinished."""
    index = _parsed(remote.url, content)
    fingerprint = digest(index)
    copy = copy_of(fingerprint)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            _fill(remote, copy, index)
            with atomic_path(copy / INDEX) as temporary:
                temporary.write_bytes(content)
        return _opened(copy, remote.url)


def _opened(copy: Path, url: str) -> TokenStore:
    store = TokenStore.open(copy)
    store.origin = url
    return store


def _fill(remote: Remote, copy: Path, index: Mapping[str, Any]) -> None:
    """Fetch the shards that are not there yet: what is there was verified before it got its name."""
    try:
        digests = {str(entry["name"]): str(entry["sha256"]) for entry in index["shards"]}
    except (KeyError, TypeError) as error:
        raise StoreError(f"{remote / INDEX}: damaged ({error!r}); remove it and encode again") from error
    for name in digests:
        if not SHARD_NAME.fullmatch(name):
            raise StoreError(f"{remote / INDEX}: {name!r} is not a shard's name; do not use this store")

    def fetch(name: str) -> None:
        with atomic_path(copy / name) as temporary:
            _fetch(remote / name, temporary, digests[name])

    missing = [name for name in digests if not (copy / name).exists()]
    _at_once(fetch, missing, "fetching the token store's shards", already=len(digests) - len(missing))


def _fetch(remote: Remote, path: Path, sha256: str) -> None:
    remote.download(path)
    found = file_digest(path)
    if found != sha256:
        raise StoreError(
            f"{remote}: arrived with sha256 {found[:12]}..., {sha256[:12]}... was written; it is not used and the next "
            "try fetches it again. If that fails too, the object is damaged: remove the store there and encode again"
        )


def _at_once(work: Callable[[Any], None], items: list[Any], label: str, already: int = 0) -> None:
    """Several at a time; the first error is raised when those under way have ended."""
    if not items:
        return
    with progress_line(label) as line, ThreadPoolExecutor(DOWNLOADS) as pool:
        futures = [pool.submit(work, item) for item in items]
        try:
            for done, future in enumerate(futures, start=already + 1):
                future.result()
                line(done, already + len(items))
        finally:
            pool.shutdown(cancel_futures=True)


def _shards_in(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*") if SHARD_NAME.fullmatch(path.name))


def _parsed(url: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{url}: holds no token store that can be read; remove what is there, or choose another place")
    return value


def _check(url: str, wanted: StoreSettings, stored: Any) -> None:
    """Refuse a URL where a store of other settings lies."""
    try:
        difference = StoreSettings.from_json(stored).difference(wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{url}: damaged settings ({error}); remove what is there and encode again") from error
    if difference is not None:
        raise StoreError(
            f"data.store: {url} was made with other settings ({difference}); choose another data.store or remove what "
            "is there"
        )

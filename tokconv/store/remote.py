"""A token store at a URL, read through a copy on this node: fetched once, verified by hash, mapped like any other.

    TOKCONV_CACHE/stores/FINGERPRINT/      the copy; `index.json` arrives last, so that a copy with an index is whole
    TOKCONV_CACHE/stores/FINGERPRINT.lock  two processes at once: one fetches, the other waits
    TOKCONV_CACHE/stores/encoding-KEY/     where a store is encoded; its shards are uploaded as they finish

What is computed from a store (`derived/`) stays with the copy, so each node computes it once. The URL holds the files
of an ordinary store and the sha256 of each shard, so that any machine can resume an interrupted encode.
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
    check_stored,
    digest,
    read_header,
    shard_name,
)
from tokconv.store.reader import TokenStore
from tokconv.system.files import atomic_path, file_digest, write_json
from tokconv.system.mirror import SHA256, Mirror
from tokconv.system.storage import Remote, cache_dir, check_url, is_url, storage_advice
from tokconv.system.terminal import progress_line

DOWNLOADS = 8
"""Shards fetched at the same time."""
DRAIN_SECONDS = 600.0
"""How long the end of an encode waits for the upload of its last shards."""


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
            return TokenStore.open(self.place)
        if (copy_of(self.fingerprint) / INDEX).exists():
            return _open_fetched(copy_of(self.fingerprint), self.place)
        store = open_remote(self.place)
        if store.fingerprint != self.fingerprint:
            raise StoreError(f"{self.place}: holds another store than before; encode to another place instead")
        return store


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
        raise StoreError(f"there is no complete token store {url}; run: tokconv encode data.store={url}")
    return _open_copy(Remote(url), content)


def exists_remote(url: str, settings: StoreSettings) -> bool:
    """Return whether the complete store of these settings is at a URL; only its index is fetched."""
    with storage_advice("data.store"):
        return _find_index(url, settings) is not None


def encode_remote(url: str, settings: StoreSettings, encode: Callable[[], TokenStore]) -> TokenStore:
    """Return the store of these settings at a URL; encode it if it is not there.

    It is encoded on this node, in `staging_dir`. Each shard is uploaded as soon as it is whole, the index last. What an
    interrupted encode of any machine left at the URL is fetched instead of encoded again.

    Args:
        encode: encodes to `staging_dir`, which may already hold some shards.

    Raises:
        StoreError: another store is there.
        StorageError: the server refuses or does not answer; nothing is encoded then.
    """
    remote, staging = Remote(url), staging_dir(url, settings)
    staging.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{staging}.lock"):
        with storage_advice("data.store"):
            content = _find_index(url, settings)
            if content is not None:
                return _open_copy(remote, content)
        remote.check_writable("data.store")
        _fetch_unfinished(remote, staging, settings)
        with Mirror(
            staging,
            remote,
            files=lambda: [SETTINGS, *sorted(path.name for path in staging.glob("tokens-*.safetensors"))],
            digests=True,
            drain_seconds=DRAIN_SECONDS,
            resume_with="the same command",
        ):
            store = encode()
        (remote / INDEX).upload(staging / INDEX)
        return _make_copy(staging, store.fingerprint, url)


def _make_copy(staging: Path, fingerprint: str, url: str) -> TokenStore:
    """Make what was encoded on this node its copy of the store."""
    copy = copy_of(fingerprint)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            with atomic_path(copy) as temporary:
                staging.rename(temporary)
        else:
            shutil.rmtree(staging)
        return _open_fetched(copy, url)


def _fetch_unfinished(remote: Remote, staging: Path, settings: StoreSettings) -> None:
    """Fetch the whole shards that an interrupted encode left at the URL."""
    content = (remote / SETTINGS).read()
    if content is None:
        return
    check_stored(remote.url, _parse(remote.url, content), settings, "what is there")
    if not (staging / SETTINGS).exists():
        write_json(staging / SETTINGS, settings.to_json())
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
        # As sha256sum writes it: the digest, two spaces, the name.
        checksum = (remote / f"{name}{SHA256}").read() or b""
        try:
            with atomic_path(staging / name) as temporary:
                _fetch(remote / name, temporary, checksum.decode("ascii", "replace").split(" ")[0])
                read_header(temporary, settings, number)
        except StoreError as error:
            print(f"{error}; it is encoded again")

    _in_parallel(fetch, wanted, "fetching shards")


def _open_copy(remote: Remote, content: bytes) -> TokenStore:
    """Open this node's copy of the store with this index; fetch it if it is missing or unfinished."""
    index = _parse(remote.url, content)
    fingerprint = digest(index)
    copy = copy_of(fingerprint)
    copy.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            _fetch_missing(remote, copy, index)
            with atomic_path(copy / INDEX) as temporary:
                temporary.write_bytes(content)
        return _open_fetched(copy, remote.url)


def _open_fetched(copy: Path, url: str) -> TokenStore:
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
            _fetch(remote / name, temporary, digests[name])

    missing = [name for name in digests if not (copy / name).exists()]
    _in_parallel(fetch, missing, "fetching the token store's shards", already=len(digests) - len(missing))


def _fetch(remote: Remote, path: Path, sha256: str) -> None:
    remote.download(path)
    found = file_digest(path)
    if found != sha256:
        raise StoreError(
            f"{remote}: arrived with sha256 {found[:12]}..., but {sha256[:12]}... was written; it is not used, and the "
            "next try fetches it again. If that fails too, the object is damaged: remove that store and encode again"
        )


def _in_parallel(work: Callable[[Any], None], items: list[Any], label: str, already: int = 0) -> None:
    """Work on several items at a time; raise the first error when those in progress have ended."""
    with progress_line(label) as line, ThreadPoolExecutor(DOWNLOADS) as pool:
        for done, _ in enumerate(pool.map(work, items), start=already + 1):
            line(done, already + len(items))


def _parse(url: str, content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StoreError(f"{url}: holds no readable token store; remove what is there, or choose another place")
    return value


def _find_index(url: str, settings: StoreSettings) -> bytes | None:
    """Return the index of the store at a URL, or None. Raises StoreError if it is of other settings."""
    content = (Remote(url) / INDEX).read()
    if content is not None:
        check_stored(url, _parse(url, content).get("settings"), settings, "what is there")
    return content

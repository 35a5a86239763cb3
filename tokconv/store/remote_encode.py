"""Encoding a token store to a URL, and adding images to one: on this node first, the index at the URL last."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

from tokconv.errors import StoreError
from tokconv.store.contents import FILES
from tokconv.store.format import INDEX, SETTINGS, StoreSettings, check_settings, check_stored, read_header, shard_name
from tokconv.store.reader import TokenStore
from tokconv.store.remote import (
    copy_of,
    fetch_verified,
    find_index,
    in_parallel,
    open_copy,
    open_fetched,
    parse_json,
    staging_dir,
    stores_dir,
)
from tokconv.store.writer import LOCK
from tokconv.system.files import atomic_path, write_json
from tokconv.system.mirror import SHA256, Mirror, keep_uploaded
from tokconv.system.storage import Remote, storage_advice

DRAIN_SECONDS = 600.0
"""How long the end of an encode waits for the upload of its last shards."""


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
            content = find_index(url, settings)
            if content is not None:
                return open_copy(remote, content)
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
        for name in (FILES, INDEX):
            if (staging / name).exists():
                (remote / name).upload(staging / name)
        return _make_copy(staging, store.fingerprint, url)


def amend_remote(store: TokenStore, amend: Callable[[TokenStore], TokenStore]) -> TokenStore:
    """Amend a store that was fetched from a URL: a copy of its copy is amended, then what is new goes to the URL.

    Args:
        amend: writes another version of the store that it is given, and returns that.

    Raises as `encode_remote`.
    """
    if store.origin is None:
        return amend(store)
    remote, staging = Remote(store.origin), stores_dir() / f"amending-{store.fingerprint[:16]}"
    with FileLock(f"{staging}.lock"):
        shutil.rmtree(staging, ignore_errors=True)
        # Links: no file of a store is ever changed in place.
        shutil.copytree(
            store.path, staging, copy_function=os.link, ignore=shutil.ignore_patterns("derived*", ".*", "*.lock")
        )
        amended = amend(TokenStore.open(staging))
        if amended.fingerprint == store.fingerprint:
            shutil.rmtree(staging)
            return store
        remote.check_writable("data.store")
        there = {path.name for path in store.path.iterdir()}
        new = sorted(path.name for path in staging.iterdir() if path.name not in {*there, LOCK, INDEX})
        with storage_advice("data.store"):
            for name in (*new, FILES, INDEX):
                if (staging / name).exists():
                    (remote / name).upload(staging / name)
        return _make_copy(staging, amended.fingerprint, store.origin)


def _make_copy(staging: Path, fingerprint: str, url: str) -> TokenStore:
    """Make what was encoded on this node its copy of the store."""
    copy = copy_of(fingerprint)
    with FileLock(f"{copy}.lock"):
        if not (copy / INDEX).exists():
            with atomic_path(copy) as temporary:
                staging.rename(temporary)
        else:
            shutil.rmtree(staging)
        return open_fetched(copy, url)


def _fetch_unfinished(remote: Remote, staging: Path, settings: StoreSettings) -> None:
    """Fetch the whole shards that an interrupted encode left at the URL, and forget those that are gone from there."""
    content, there = (remote / SETTINGS).read(), remote.files()
    keep_uploaded(staging, there)
    if content is None:
        return
    check_stored(remote.url, parse_json(remote.url, content), settings, "what is there")
    if not (staging / SETTINGS).exists():
        write_json(staging / SETTINGS, settings.to_json())
    check_settings(staging, settings)
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
                fetch_verified(remote / name, temporary, checksum.decode("ascii", "replace").split(" ")[0])
                read_header(temporary, settings, number)
        except StoreError as error:
            print(f"{error}; it is encoded again")

    in_parallel(fetch, wanted, "fetching shards")

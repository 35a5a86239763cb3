"""Object storage behind one small interface: `s3://`, `gs://`, and everything else that fsspec has a driver for.

Everything that tokconv keeps at a URL goes through `Remote`. Credentials come from the environment or the driver's own
configuration (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, an instance role; AWS_ENDPOINT_URL for servers other than
Amazon's) and are never part of a URL. `file:///shared/...` is a directory on a shared file system that is used like a
server. A URL is taken letter by letter, as S3 takes it: `%20` is three characters of a name, not a space.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tokconv.errors import ConfigError, MissingExtraError, StorageError, TokconvError
from tokconv.system.files import atomic_path, local_path

Result = TypeVar("Result")
CACHE = "TOKCONV_CACHE"
"""Environment variable: the directory in which a node keeps its copies of what is stored at URLs."""
LOCAL = "file"
OPTIONS = {
    # Seconds and attempts per request; callers that can wait longer try again (`retry`, `tokconv.system.mirror`).
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}},
}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts, doubled after each failure."""
ADVICE = (
    "check that the bucket exists, the endpoint (AWS_ENDPOINT_URL, if it is not Amazon's) and the credentials "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Return whether a place is a URL, not a path."""
    return "://" in str(place)


def cache_dir() -> Path:
    """Return this node's directory for copies of what is stored at URLs: TOKCONV_CACHE, or ~/.cache/tokconv."""
    return local_path(os.environ.get(CACHE) or "~/.cache/tokconv").resolve()


def check_url(key: str, url: str) -> str:
    """Check a URL without connecting to it, and return it without a trailing slash.

    Raises:
        ConfigError: it contains credentials, names no bucket, or is of a kind that cannot be written to.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or (parts.query and parts.scheme != LOCAL):
        # The URL is not shown, since it contains a secret.
        raise ConfigError(
            f"{key}: the {parts.scheme} URL contains credentials or options, which a spec must not. Remove them and "
            "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if not (parts.path.strip("/") if parts.scheme == LOCAL else parts.netloc):
        raise ConfigError(f"{key}: got {url!r}; must name a bucket, as in s3://bucket/prefix")
    if parts.scheme in ("http", "https", "data"):
        raise ConfigError(f"{key}: got {url!r}; nothing can be written there, use s3://, gs:// or a directory")
    return url.rstrip("/")


@dataclass(frozen=True)
class Remote:
    """A place at a URL, used as an object or as a prefix of objects.

    Every method raises StorageError if the server refuses or does not answer.

    Example:
        >>> place = Remote("s3://bucket/stores/digits")     # doctest: +SKIP
        >>> (place / "index.json").read()                   # doctest: +SKIP
    """

    url: str

    def __truediv__(self, name: str) -> Remote:
        return Remote(f"{self.url}/{name}")

    def __str__(self) -> str:
        return self.url

    def read(self) -> bytes | None:
        """Return the object's bytes; None if it does not exist."""
        with self._explained("read"):
            try:
                return self._fs.cat_file(self._path)
            except FileNotFoundError:
                return None

    def write(self, content: bytes) -> None:
        """Write the object, either whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="tokconv-") as scratch:
            (path := Path(scratch) / "content").write_bytes(content)
            self.upload(path)

    def upload(self, path: Path) -> None:
        """Write a local file's content to the object, either whole or not at all."""
        path.stat()
        with self._explained("written"):
            if self.url.startswith(f"{LOCAL}://"):
                # Only a server replaces an object atomically by itself.
                with atomic_path(Path(self._path)) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self._fs.put_file(str(path), self._path)

    def download(self, path: Path) -> None:
        """Write the object's content to a local file, whole or not at all. Raises StorageError if it is missing."""
        with self._explained("read"), atomic_path(path) as temporary:
            self._fs.get_file(self._path, str(temporary))

    def files(self) -> dict[str, int]:
        """Return every object below this prefix: its name relative to the prefix -> its size in bytes."""
        with self._explained("listed"):
            self._fs.invalidate_cache()
            found = self._fs.find(self._path, detail=True)
        return {name[len(self._path) + 1 :]: int(entry["size"]) for name, entry in sorted(found.items())}

    def folders(self) -> list[str]:
        """Return the names directly below this prefix that have objects below them, sorted."""
        with self._explained("listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "directory")

    def download_all(self, names: Sequence[str], directory: Path) -> None:
        """Download objects below this prefix, several at a time, to files of the same names in a directory."""
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with self._explained("read"):
            self._fs.get([f"{self._path}/{name}" for name in names], [str(directory / name) for name in names])

    def remove(self, names: Sequence[str]) -> None:
        """Remove objects below this prefix; those that are already gone are ignored."""
        with self._explained("changed"):
            for name in names:
                with suppress(FileNotFoundError):
                    self._fs.rm_file(f"{self._path}/{name}")

    def check_writable(self, key: str) -> None:
        """Write, read and remove a small object, before long work depends on it.

        Raises:
            StorageError: one of them fails; the message gives the reason and what to check.
            MissingExtraError: the driver is not installed.
        """
        probe = self / f".tokconv-probe-{uuid.uuid4().hex[:8]}"
        with storage_advice(key):
            probe.write(b"tokconv")
            if probe.read() != b"tokconv":
                raise StorageError(f"{self.url}: reading did not return what was just written there")
            self.remove([probe.name])

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def _fs(self) -> Any:
        return _filesystem(self.url.split("://", 1)[0], os.getpid())

    @property
    def _path(self) -> str:
        return str(self._fs._strip_protocol(self.url))

    @contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        try:
            yield
        except TokconvError:
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{self.url}: there is no such object or bucket") from error
        # A driver raises errors of its own, of its client library and of its event loop.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"{self.url}: cannot be {what} ({type(error).__name__}: {reason})") from error


@contextmanager
def storage_advice(key: str) -> Iterator[None]:
    """Add the config key and what to check to a StorageError, where a place that the user named is first used."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{key}: {error}; {ADVICE}") from error


def retry(work: Callable[[], Result], seconds: float) -> Result:
    """Return what `work` returns; call it again while it raises StorageError.

    Raises:
        StorageError: `work` still fails after that many seconds.
    """
    deadline, wait = time.monotonic() + seconds, FIRST_WAIT
    while True:
        try:
            return work()
        except StorageError:
            if time.monotonic() + wait > deadline:
                raise
            time.sleep(wait)
            wait = min(2 * wait, LONGEST_WAIT)


@contextmanager
def local_copy(place: str, *, retry_seconds: float = 0.0) -> Iterator[Path]:
    """Yield the local path of a directory. If the directory is at a URL, that is a copy, removed after the block.

    Args:
        place: a path or a URL.
        retry_seconds: how long to try again if the server does not answer.

    Raises:
        StorageError: the directory cannot be read.
    """
    if not is_url(place):
        yield Path(place)
        return
    with tempfile.TemporaryDirectory(prefix="tokconv-") as scratch:
        remote, path = Remote(place), Path(scratch) / Remote(place).name

        def fetch() -> None:
            names = list(remote.files())
            if not names:
                raise StorageError(f"{place}: nothing is there")
            remote.download_all(names, path)

        retry(fetch, retry_seconds)
        yield path


@lru_cache
def _filesystem(protocol: str, _process: int) -> Any:
    """Return fsspec's file system for a protocol, one per process: a driver's connections do not survive a fork."""
    import fsspec
    from fsspec.registry import known_implementations

    try:
        return fsspec.filesystem(protocol, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        command = "'tokconv[s3]'" if package == "s3fs" else package
        raise MissingExtraError(
            f"{protocol}://: this needs {package}, which is not installed; run: pip install {command}"
        ) from error
    except ValueError as error:
        raise StorageError(f"{protocol}://: unknown; use s3://, gs://, az:// or a directory") from error

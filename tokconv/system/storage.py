"""Object storage behind one small door: `s3://`, `gs://`, and whatever else fsspec has a driver for.

Everything that tokconv keeps at a URL goes through `Remote`. Credentials come from the environment or the driver's own
configuration (AWS_ACCESS_KEY_ID, AWS_PROFILE, ~/.aws, an instance role; AWS_ENDPOINT_URL for another server than
Amazon's) and are never part of a URL. `file:///shared/...` is a directory on a shared file system, used as if it were
a server.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from tokconv.errors import ConfigError, MissingExtraError, StorageError, TokconvError
from tokconv.system.files import atomic_path

Result = TypeVar("Result")
CACHE = "TOKCONV_CACHE"
"""Environment variable: where a node keeps its copies of what lies at URLs."""
LOCAL = "file"
OPTIONS = {
    # Seconds and attempts of one request; whoever can wait longer tries again (`patiently`, `tokconv.system.mirror`).
    "s3": {"config_kwargs": {"connect_timeout": 5, "read_timeout": 60, "retries": {"max_attempts": 2}}},
}
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
"""Seconds between attempts, doubled after each failed one."""
ADVICE = (
    "check that the bucket exists, the endpoint (AWS_ENDPOINT_URL, when it is not Amazon's) and the credentials "
    "(AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE)"
)


def is_url(place: str | os.PathLike[str]) -> bool:
    """Whether a place is a URL, not a path."""
    return "://" in str(place)


def cache_dir() -> Path:
    """This node's directory for copies of what lies at URLs: TOKCONV_CACHE, or ~/.cache/tokconv."""
    return Path(os.environ.get(CACHE) or "~/.cache/tokconv").expanduser().resolve()


def check_url(key: str, url: str) -> str:
    """A URL that may be used as a place; without a slash at its end it comes back. Nothing is connected.

    Raises:
        ConfigError: credentials in it, no bucket, or a kind that nothing could be written to.
    """
    parts = urlsplit(url)
    if "@" in parts.netloc or parts.query:
        # Not shown: what is wrong with it is the secret in it.
        raise ConfigError(
            f"{key}: the {parts.scheme} URL holds credentials or options; a spec may not. Leave them out and set "
            "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE"
        )
    if not (parts.path.strip("/") if parts.scheme == LOCAL else parts.netloc):
        raise ConfigError(f"{key}: got {url!r}; must name a bucket, as in s3://bucket/prefix")
    if parts.scheme in ("http", "https", "data"):
        raise ConfigError(f"{key}: got {url!r}; nothing can be written there, use s3://, gs:// or a directory")
    return url.rstrip("/")


@dataclass(frozen=True)
class Remote:
    """A place at a URL: an object, or a prefix of objects, by the way it is used.

    Every method raises StorageError when the server refuses or does not answer.

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
        """The object's bytes; None when it does not exist."""
        with self._told("read"):
            try:
                content: bytes = self._fs.cat_file(self._path)
            except FileNotFoundError:
                return None
            return content

    def write(self, content: bytes) -> None:
        """Write the object, whole or not at all."""
        with tempfile.TemporaryDirectory(prefix="tokconv-") as scratch:
            (path := Path(scratch) / "content").write_bytes(content)
            self.upload(path)

    def upload(self, path: Path) -> None:
        """A local file's content becomes the object, whole or not at all."""
        path.stat()
        with self._told("written"):
            if self._is_local:
                # Only a server replaces an object in one step by itself.
                with atomic_path(Path(self._path)) as temporary:
                    shutil.copyfile(path, temporary)
            else:
                self._fs.put_file(str(path), self._path)

    def download(self, path: Path) -> None:
        """The object's content becomes a local file, whole or not at all. Raises StorageError when it is missing."""
        with self._told("read"), atomic_path(path) as temporary:
            self._fs.get_file(self._path, str(temporary))

    def files(self) -> dict[str, int]:
        """Every object below this prefix: name relative to it -> bytes."""
        with self._told("listed"):
            self._fs.invalidate_cache()
            found = self._fs.find(self._path, detail=True)
        return {name[len(self._path) + 1 :]: int(entry["size"]) for name, entry in sorted(found.items())}

    def folders(self) -> list[str]:
        """The names directly below this prefix that have objects below them."""
        with self._told("listed"):
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(self._path, detail=True)
            except FileNotFoundError:
                return []
        return sorted(entry["name"].rstrip("/").rsplit("/", 1)[-1] for entry in found if entry["type"] == "directory")

    def download_all(self, names: Sequence[str], directory: Path) -> None:
        """Several objects below this prefix, several at a time, to files of the same names."""
        for name in names:
            (directory / name).parent.mkdir(parents=True, exist_ok=True)
        with self._told("read"):
            self._fs.get([f"{self._path}/{name}" for name in names], [str(directory / name) for name in names])

    def remove(self, names: Sequence[str]) -> None:
        """Remove some objects below this prefix; those that are gone already are none of its business."""
        with self._told("changed"):
            for name in names:
                try:
                    self._fs.rm_file(f"{self._path}/{name}")
                except FileNotFoundError:
                    continue

    def check_writable(self, key: str) -> None:
        """Write, read and remove a small object, before work is built on it.

        Raises:
            StorageError: one of them is not possible; why, and what to check.
            MissingExtraError: the driver is not installed.
        """
        probe = self / f".tokconv-probe-{uuid.uuid4().hex[:8]}"
        with advised(key):
            probe.write(b"tokconv")
            if probe.read() != b"tokconv":
                raise StorageError(f"{self.url}: does not return what was just written there")
            self.remove([probe.name])

    @property
    def name(self) -> str:
        return self.url.rsplit("/", 1)[-1]

    @property
    def _fs(self) -> Any:
        return _filesystem(self.url.split("://", 1)[0], os.getpid())

    @property
    def _is_local(self) -> bool:
        return self.url.startswith(f"{LOCAL}://")

    @property
    def _path(self) -> str:
        return str(self._fs._strip_protocol(self.url))

    @contextmanager
    def _told(self, what: str) -> Iterator[None]:
        try:
            yield
        except TokconvError:
            raise
        except FileNotFoundError as error:
            raise StorageError(f"{self.url}: there is no such object or bucket") from error
        # A driver raises its own errors, its client library's and its event loop's.
        except Exception as error:
            reason = " ".join(str(error).split())[:200]
            raise StorageError(f"{self.url}: cannot be {what} ({type(error).__name__}: {reason})") from error


@contextmanager
def advised(key: str) -> Iterator[None]:
    """What the user named by `key` is used for the first time in the block: what fails is told with what to check."""
    try:
        yield
    except StorageError as error:
        raise StorageError(f"{key}: {error}; {ADVICE}") from error


def patiently(work: Callable[[], Result], seconds: float) -> Result:
    """What `work` returns, tried again while the server is away.

    Raises:
        StorageError: it still is after so many seconds.
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
def fetched(place: str, *, patience: float = 0.0) -> Iterator[Path]:
    """A directory by its path or its URL, as a local path: a copy in a scratch directory when it is at a URL.

    Args:
        patience: seconds for which a server may be away.

    Raises:
        StorageError: it cannot be read.
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

        patiently(fetch, patience)
        yield path


@lru_cache
def _filesystem(protocol: str, _process: int) -> Any:
    """fsspec's file system of a protocol, one a process: a driver's connections do not survive a fork."""
    import fsspec
    from fsspec.registry import known_implementations

    try:
        return fsspec.filesystem(protocol, **OPTIONS.get(protocol, {}))
    except ImportError as error:
        package = known_implementations[protocol]["class"].split(".")[0]
        command = "'tokconv[s3]'" if package == "s3fs" else package
        raise MissingExtraError(
            f"{protocol}://: {package} is not installed, which reads and writes it; run: pip install {command}"
        ) from error
    except ValueError as error:
        raise StorageError(f"{protocol}://: not known; use s3://, gs://, az:// or a directory") from error

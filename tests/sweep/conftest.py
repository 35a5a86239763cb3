"""What tests of sweeps share: an S3-compatible server."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.objects import ObjectServer, client_of_a_server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    with client_of_a_server(monkeypatch, tmp_path / "objects", tmp_path / "one") as running:
        yield running

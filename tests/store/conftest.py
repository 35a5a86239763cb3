"""What tests of the store share: a written one."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.shards import write


@pytest.fixture
def path(tmp_path: Path) -> Path:
    write(tmp_path / "store")
    return tmp_path / "store"

"""What tests of networks share: a small store."""

from __future__ import annotations

import pytest
from support.stores import write_store

from tokconv.store.reader import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    return write_store(tmp_path_factory.mktemp("kinds") / "store")

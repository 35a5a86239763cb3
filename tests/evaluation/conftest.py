"""What tests of the evaluation share: a small store."""

from __future__ import annotations

import pytest
from support.stores import write_store

from tokconv.store.reader import TokenStore


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> TokenStore:
    """A store of 80 images, with which the tests of a file share what was fitted on it."""
    return write_store(tmp_path_factory.mktemp("stores") / "tiny", num_images=80)

"""What tests of sweeps share: an S3-compatible server, a storage root that MLflow tracks, a listener."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.artefacts import write_export
from support.desks import Desk
from support.objects import ObjectServer, client_of_a_server
from support.tracked import delivering_quickly

from tokconv.sweep.tracking import follower
from tokconv.sweep.tracking.mlflow_connection import DATABASE, connect
from tokconv.system.uris import sqlite_uri

AWKWARD = "-my%20runs %2F #1?a=b&c;'d'\"[e]{f}*$HOME`g`<h>|\\é\N{GRINNING FACE}~:@,!^+(i)%"


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[ObjectServer]:
    with client_of_a_server(monkeypatch, tmp_path / "objects", tmp_path / "one") as running:
        yield running


@pytest.fixture
def tracked_quickly(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Shorten the waits, and check that the working directory stays empty."""
    monkeypatch.setattr(follower, "LONGEST_WAIT", 0.1)
    here = tmp_path / "working directory"
    here.mkdir()
    monkeypatch.chdir(here)
    with delivering_quickly(monkeypatch):
        yield
    assert not list(here.iterdir())
    # A name that is not quoted, or quoted twice, ends up in another folder.
    assert {path.name for path in tmp_path.iterdir()} <= {here.name, AWKWARD, "another machine", "newer", "loaded"}


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor."""
    return write_export(tmp_path_factory.mktemp("artefact") / "compressor")


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's own tables; creating them takes seconds, so it is done once."""
    path = tmp_path_factory.mktemp("mlflow") / DATABASE
    connect(sqlite_uri(path)).search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    """A storage root whose name has every sign that means something in a URI, a shell or a pattern."""
    path = tmp_path / AWKWARD
    path.mkdir()
    (path / DATABASE).write_bytes(empty_database.read_bytes())
    return path


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    found = Desk(tmp_path)
    yield found
    found.record.close()

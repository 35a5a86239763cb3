"""The record of a sweep at a URL: read beside its driver, continued on another machine from the newest state."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.objects import URL, ObjectServer

from tokconv.errors import SweepError
from tokconv.sweep.judge.snapshot import all_sweeps, find_sweep
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote import mirrored, open_root
from tokconv.system.storage import CACHE, Remote

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, in its own threads


@pytest.fixture
def shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SweepDirectory:
    """Return a sweep at a URL that needs no server, with one running trial, as its first driver left it."""
    monkeypatch.setenv(CACHE, str(tmp_path / "one"))
    directory = open_root(f"file://{tmp_path}/shared").new("tiny")
    directory.spec.write_text("name: tiny\n")
    record = Record(directory.events)
    directory.journal.write_text('{"op": 1}\n')
    record.append("trial_started", trial="00000", values={}, grid=2, ratio=4.0)
    record.append("trial_reported", trial="00000", epoch=1, figures={"val/fvu": 0.3, "epoch": 1}, checkpoint=None)
    with mirrored(directory, record):
        pass
    record.close()
    return directory


def test_every_run_of_a_spec_has_its_own_remote_directory(
    server: ObjectServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = open_root(URL)
    first = root.new("tiny")
    assert (first.name, first.trials) == ("tiny-001", f"{URL}/sweeps/tiny-001/trials")
    with pytest.raises(SweepError, match="no run of 'tiny' to resume"):
        root.newest("tiny")
    (Remote(URL) / "sweeps/tiny-001/spec.yaml").write(b"name: tiny\n")
    monkeypatch.setenv(CACHE, str(tmp_path / "two"))
    assert open_root(URL).new("tiny").name == "tiny-002"
    assert open_root(URL).new("tin").name == "tin-001"


def test_a_sweep_at_a_url_is_read_without_disturbing_its_driver(
    shared: SweepDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"file://{tmp_path}/shared"
    assert find_sweep("tiny", url) == find_sweep("tiny-001", url) == shared
    assert all_sweeps(url) == [shared]
    with pytest.raises(SweepError, match=r"other: no such sweep in file://.*there are: tiny-001$"):
        find_sweep("other", url)
    record = Record(shared.events)
    with shared.lock(), mirrored(shared, record):
        assert find_sweep("tiny", url) == shared
        assert capsys.readouterr().err == ""
        # Another machine has no other sign of the driver than its lease.
        monkeypatch.setenv(CACHE, str(tmp_path / "two"))
        monkeypatch.setattr("socket.gethostname", lambda: "elsewhere")
        other = find_sweep("tiny", url)
        assert other.path.is_relative_to(tmp_path / "two")
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "has not signed off" in printed.err
        assert "downloaded from" in printed.err
    record.close()


def test_a_sweep_goes_on_from_its_newest_state(
    shared: SweepDirectory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"file://{tmp_path}/shared"
    first = shared.events.read_bytes()
    # This machine has more than its mirror, which was away when the driver died, and keeps it.
    ahead = first + b'{"event":"sweep_ended","time":1}\n'
    shared.events.write_bytes(ahead)
    assert open_root(url).newest("tiny").events.read_bytes() == ahead
    # Another machine goes on from the mirror.
    monkeypatch.setenv(CACHE, str(tmp_path / "two"))
    other = open_root(url).newest("tiny")
    assert other.path.is_relative_to(tmp_path / "two")
    assert (other.events.read_bytes(), other.spec.read_text()) == (first, "name: tiny\n")
    assert other.journal.read_bytes() == shared.journal.read_bytes()
    record = Record(other.events)
    with mirrored(other, record):
        record.append("trial_ended", trial="00000", state="complete")
    record.close()
    # The first machine comes back: what only it had is no longer part of the sweep.
    monkeypatch.setenv(CACHE, str(tmp_path / "one"))
    late = Record(shared.events)
    with pytest.raises(SweepError, match="another driver went on with it"), mirrored(shared, late):
        pass
    late.close()
    assert open_root(url).newest("tiny").events.read_bytes() == other.events.read_bytes()


def test_epochs_that_the_mirror_missed_are_read_from_checkpoints(shared: SweepDirectory) -> None:
    assert shared.remote is not None
    rows = [{"epoch": epoch, "epochs": 4, "val/fvu": 1 / epoch} for epoch in (1, 2, 3)]
    (shared.remote / "trials/00000/epoch-0003/state.json").write(json.dumps({"history": rows}).encode())
    (shared.remote / "trials/00001/epoch-0002/state.json").write(b"{}")
    record = Record(shared.events)
    with mirrored(shared, record):
        assert [row["epoch"] for row in record.trials["00000"].history] == [1, 2, 3]
        assert record.trials["00000"].figures["val/fvu"] == 1 / 3
        assert record.trials["00000"].checkpoint == "trials/00000/epoch-0003"
        assert shared.place("trials/00000/epoch-0003") == f"{shared.remote}/trials/00000/epoch-0003"
    record.close()
    assert (shared.remote / "trials").files().keys() == {"00000/epoch-0003/state.json"}

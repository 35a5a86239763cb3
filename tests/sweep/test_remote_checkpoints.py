"""Checkpoints at a URL: the newest whole one counts, and it is the only one kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.objects import URL, ObjectServer

from tokconv.sweep.record.remote_checkpoints import RemoteCheckpoints
from tokconv.system.storage import Remote

pytestmark = pytest.mark.filterwarnings("ignore")  # from botocore, in its own threads


def test_checkpoints_without_their_last_file_do_not_count(server: ObjectServer, tmp_path: Path) -> None:
    for epoch in (1, 2):
        folder = tmp_path / f"epoch-{epoch:04d}"
        folder.mkdir()
        for name in ("optimizers.pt", "state.json", "weights.safetensors"):
            (folder / name).write_text(f"{name} {epoch}")
    checkpoints = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch")
    assert checkpoints.latest() is None
    assert checkpoints.keep(tmp_path / "epoch-0001") == f"{URL}/trials/00000/epoch-0001"
    (Remote(URL) / "trials/00000/epoch-0002/weights.safetensors").upload(tmp_path / "epoch-0002/weights.safetensors")
    newest = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch").latest()
    assert newest is not None
    assert sorted(path.read_text() for path in newest.iterdir()) == sorted(
        f"{name} 1" for name in ("optimizers.pt", "state.json", "weights.safetensors")
    )
    checkpoints.keep(tmp_path / "epoch-0002")
    assert {name.split("/")[0] for name in Remote(f"{URL}/trials/00000").files()} == {"epoch-0002"}


def test_remote_checkpoints_are_ordered_by_epoch_not_by_name(server: ObjectServer, tmp_path: Path) -> None:
    checkpoints = RemoteCheckpoints(f"{URL}/trials/00000", tmp_path / "scratch")
    for epoch in (9999, 10000):
        folder = tmp_path / f"epoch-{epoch}"
        folder.mkdir()
        (folder / "state.json").write_text("{}")
        (Remote(URL) / "trials/00000" / folder.name / "state.json").upload(folder / "state.json")
    newest = checkpoints.latest()
    assert newest is not None
    assert newest.name == "epoch-10000"
    checkpoints.keep(tmp_path / "epoch-10000")
    assert {name.split("/")[0] for name in Remote(f"{URL}/trials/00000").files()} == {"epoch-10000"}

"""`tokconv stores`: one line per store, finished or not, whatever else lies there."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from support.stores import write_store

from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.encoding.job import default_place, open_job
from tokconv.store.format import INDEX, SETTINGS

Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TOKCONV_CACHE", str(tmp_path / "cache"))


def test_every_store_is_a_line(capsys: Capture) -> None:
    store = write_store(Path("runs/stores/tiny"))
    copy = shutil.copytree(store.path, Path("cache/stores/0a1b"))
    unfinished = Path("runs/stores/later")
    unfinished.mkdir()
    settings = json.loads((store.path / INDEX).read_text())["settings"]
    (unfinished / SETTINGS).write_text(json.dumps(settings))
    Path("runs/stores/notes.txt").touch()
    assert main(["stores"]) == 0
    head, *lines = capsys.readouterr().out.splitlines()
    assert head.split() == ["source", "encoder", "images", "tokens", "size", "path"]
    assert len(lines) == 3
    assert lines[0].endswith("runs/stores/later (unfinished; the same tokconv encode goes on)")
    assert lines[1].endswith(str(store.path))
    assert lines[2].endswith(str(copy))
    size = sum(file.stat().st_size for file in store.path.rglob("*"))
    for part in (store.settings.source["name"], store.settings.encoder["name"], f" {store.num_images:,} "):
        assert part in lines[1]
    assert f"{store.num_tokens} x {store.dim} {store.settings.dtype}" in lines[1]
    assert re.search(r"\d+ k?B", lines[1])
    assert size > 0
    # Of a directory that is named, only its own are listed; it may be a store.
    for place in ("cache/stores", str(copy)):
        assert main(["stores", place]) == 0
        assert [line.endswith(str(copy)) for line in capsys.readouterr().out.splitlines()] == [False, True]


def test_a_damaged_store_hides_no_other_and_none_is_a_sentence(capsys: Capture) -> None:
    assert main(["stores"]) == 2
    assert "runs/stores: holds no token store; tokconv encode" in capsys.readouterr().err
    store = write_store(Path("runs/stores/tiny"))
    shutil.copytree(store.path, "runs/stores/broken")
    Path("runs/stores/broken", INDEX).write_text("{}")
    assert main(["stores"]) == 0
    shown = capsys.readouterr()
    assert str(store.path) in shown.out
    assert re.fullmatch(r"runs/stores/broken: damaged [^\n]+\n", shown.err)


def test_a_store_is_named_by_source_and_encoder_with_its_hash_behind() -> None:
    config = compose(["data=digits", "data.subset=24", "model.clip.model_name=bundled:digits-tower"])
    job = open_job(config)
    name = Path(default_place("runs/stores", job.source, job.spec, job.settings)).name
    assert re.fullmatch(r"digits-[a-z-]*digits-tower-[0-9a-f]{8}", name), name
    assert job.path.name == name

"""Paths that people have: taken literally everywhere, with `~` as the home directory."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

import tokconv
from tokconv.cli.arguments import parse as parse_arguments
from tokconv.config.keys import get, to_dict
from tokconv.config.overrides import LITERAL, PATHS, compose, from_dict, parse
from tokconv.encoding.sources.folder import FolderSource
from tokconv.encoding.towers.hub import locate
from tokconv.errors import ConfigError, DataError, SpecError
from tokconv.store.reader import TokenStore
from tokconv.sweep.spec.file import load_spec
from tokconv.sweep.tracking.mlflow_connection import tracking_uri
from tokconv.system.files import local_path
from tokconv.system.uris import path_of

FOLDERS = [
    *("/photos (old)", "/a, b=c", "/{x,y}", "/[1]", "/it's", '/"quoted" name', "/Bilder für Österreich", "/100 %"),
    *("~/photos", "/a#b", "/a: b", "/-x", "./'x'", "/$HOME", "2017", "1e5", "true"),
    *(" leading", "trailing ", "/a\\b", "/a;b&c|d*?"),
]  # fmt: skip
PRINTABLE = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=20).filter(
    lambda text: text.lower() != "null" and "${" not in text and text != "???" and text[0] not in "'\""
)
GIVEN = {"data": "huggingface", "data.root": "a/b", "model.clip.model_name": "a/b"}


def put(key: str, text: str) -> list[str]:
    return [f"{name}={value}" for name, value in (GIVEN | {key: text}).items()]


@given(text=PRINTABLE)
@settings(derandomize=True, deadline=None, max_examples=60)
@example("~/photos")
@example("{a}, (b)=c")
def test_every_free_text_is_taken_literally(text: str) -> None:
    for key in LITERAL - {"model.compressor.grids"}:
        assert dict(parse(put(key, text)))[key] == text
    config = compose(put("data.root", text))
    assert config.data.root == text
    assert from_dict(to_dict(config)) == config


@pytest.mark.parametrize("text", FOLDERS)
def test_folders_reach_config_and_spec_as_they_are(text: str, tmp_path: Path) -> None:
    for key in (*PATHS, "model.clip.model_name"):
        assert get(compose(put(key, text)), key) == text
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump({"name": "tiny", "trials": 1, "base": put("data.root", text)}))
    spec = load_spec(path, [f"storage={text}", f"tracking.uri={text}", f"tracking.experiment={text}"])
    assert (spec.storage, spec.tracking.uri, spec.tracking.experiment) == (text, text, text)
    assert spec.base_config().data.root == text


def test_quotes_of_earlier_versions_are_removed_and_null_is_none(tmp_path: Path) -> None:
    assert compose(["data=folder", "data.root='/photos (old)'"]).data.root == "/photos (old)"
    assert compose(["data=folder", 'data.root="/it\'s"']).data.root == "/it's"
    assert compose(["data.store=null"]).data.store is None
    path = tmp_path / "spec.yaml"
    path.write_text("name: tiny\ntrials: 1\nstorage: there\n")
    assert load_spec(path, ["storage='/a b'"]).storage == "/a b"
    assert load_spec(path, ["storage=null"]).storage is None


@pytest.mark.parametrize("text", ["", "''"])
def test_an_empty_variable_of_the_shell_is_no_path(text: str, tmp_path: Path) -> None:
    for key in PATHS:
        with pytest.raises(ConfigError, match=rf"^{re.escape(key)}: got no path; is a variable of the shell empty\?"):
            compose(put(key, text))
    path = tmp_path / "spec.yaml"
    path.write_text("name: tiny\ntrials: 1\n")
    with pytest.raises(SpecError, match=r"^storage: got no path"):
        load_spec(path, [f"storage={text}"])


def test_the_home_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert local_path("~/a b") == tmp_path / "a b"
    # `Path.expanduser` raises RuntimeError for these.
    with pytest.raises(DataError, match="~nobody-here"):
        FolderSource("~nobody-here/a")
    with pytest.raises(DataError, match="there is no directory '~nobody-here/a'"):
        locate("~nobody-here/a", None)
    assert path_of(tracking_uri("sqlite:///~/my runs/mlflow.db", tmp_path)) == tmp_path / "my runs" / "mlflow.db"
    compress = ["compress", "~/a.png", "--compressor=~/c", "--out=~/o", "--picture=~/p", "~/b.png"]
    found = parse_arguments(compress)
    assert (found.images, found.compressor) == ([tmp_path / "a.png", tmp_path / "b.png"], tmp_path / "c")
    assert (found.out, found.picture) == (tmp_path / "o", tmp_path / "p")
    assert parse_arguments(["export", "~/run", "--out=~/o"]).checkpoint == tmp_path / "run"
    assert parse_arguments(["evaluate", "~/c", "s3://bucket/~/s"]).store == "s3://bucket/~/s"
    assert parse_arguments(["dynamic", "~/c", "~/s"]).store == tmp_path / "s"
    assert parse_arguments(["sweep", "~/spec.yaml"]).spec == tmp_path / "spec.yaml"


def test_advice_can_be_pasted_into_a_shell(tmp_path: Path) -> None:
    """A real shell, with the folder that a message names and a path in the home directory."""
    folder = tmp_path / "it's (old), 100 % = {a}; $HOME"
    for split in ("train", "val"):
        for number in range(3):
            image = folder / "inner" / split / "x" / f"{number}.png"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (8, 8), (number, 0, 0)).save(image)
    with pytest.raises(DataError) as caught:
        FolderSource(str(folder))
    advice = str(caught.value).partition("give that folder: ")[2]
    line = (
        f"'{sys.executable}' -m tokconv.cli encode data=folder {advice} data.store=~/'my store' "
        "model.clip.model_name=bundled:digits-tower data.num_workers=0 --device cpu"
    )
    environment = {**os.environ, "HOME": str(tmp_path), "PYTHONPATH": str(Path(tokconv.__file__).parents[1])}
    done = subprocess.run(
        ["sh", "-c", line], env=environment, capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.returncode == 0, done.stderr
    assert TokenStore.open(tmp_path / "my store").num_images == 6

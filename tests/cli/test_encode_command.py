"""`tokconv encode`: its plan, and images that cannot be read."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tokconv.cli.main import main

pytestmark = pytest.mark.usefixtures("empty_directory")


def test_overrides_may_stand_on_both_sides_of_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["encode", "data.subset=7", "--plan", "data.dtype=int8"]) == 0
    text = capsys.readouterr().out
    assert "7 images" in text
    assert "274 kB in" in text


def test_images_that_cannot_be_read_are_counted_and_listed(
    images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    Path("images/broken.png").write_bytes(b"no image")
    Path("images/empty.jpg").touch()
    folder = ["data.source=folder", "data.root=images", "data.num_workers=0"]
    assert main(["encode", *folder]) == 0
    text = capsys.readouterr().out
    assert "5 images" in text
    assert "2 images could not be read" in text
    assert re.search(r"^ +broken\.png: UnidentifiedImageError", text, re.MULTILINE)
    assert re.search(r"^ +empty\.jpg: ", text, re.MULTILINE)
    assert main(["encode", *folder, "--verify"]) == 0
    assert "every shard has the hash" in capsys.readouterr().out

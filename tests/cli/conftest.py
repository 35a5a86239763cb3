"""What tests of the command line share: an empty working directory, a store, and images."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from support.commands import digits

from tokconv.cli.main import main


@pytest.fixture
def empty_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty directory in which a test runs."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def store(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The path of a store of 48 digits, encoded once for all tests that train on it."""
    path = tmp_path_factory.mktemp("stores") / "digits"
    assert main(["encode", *digits(path), "data.num_workers=0"]) == 0
    return str(path)


@pytest.fixture
def images(tmp_path: Path) -> list[str]:
    """Five image files whose sizes and modes differ from those of the digits."""
    folder = tmp_path / "images"
    folder.mkdir()
    for number, mode in enumerate(("RGB", "L", "RGBA", "P", "CMYK")):
        suffix = "jpg" if mode == "CMYK" else "png"
        Image.new(mode, (20 + number, 30), 40 * number).save(folder / f"{number}.{suffix}")
    return sorted(map(str, folder.iterdir()))

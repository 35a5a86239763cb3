"""Which files are found: through links, beside hidden folders, by suffix; and that the rest is counted."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tokconv.encoding.sources.coco import CocoSource
from tokconv.encoding.sources.features import FeatureSource
from tokconv.encoding.sources.files import SUFFIXES, open_image
from tokconv.encoding.sources.folder import FolderSource, ImageNetSource
from tokconv.encoding.sources.walk import walk
from tokconv.errors import DataError

SOURCES = {
    "folder": (FolderSource, ("train", "val")),
    "imagenet": (ImageNetSource, ("train/a", "val/a")),
    "coco": (CocoSource, ("train2017", "val2017")),
    "features": (FeatureSource, ("train", "val")),
}
# Formats of Pillow that `SUFFIXES` explains why it leaves out.
NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "IM", "MPEG", "PCD", "WMF"}


def put(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix.lower() == ".npy":
        with path.open("wb") as file:
            np.save(file, np.random.default_rng(0).normal(size=(4, 16, 8)).astype("f4"))
    else:
        Image.new("RGB", (6, 4)).save(path)
    return path


@pytest.fixture(params=SOURCES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def name_of(kind: str, stem: str) -> str:
    return f"{stem}.npy" if kind == "features" else f"{stem}.png"


def test_a_split_that_is_a_link_is_read(kind: str, tmp_path: Path) -> None:
    opener, (train, val) = SOURCES[kind]
    put(tmp_path / "root" / train / name_of(kind, "x"))
    put(tmp_path / "elsewhere" / Path(val).name / name_of(kind, "y"))
    link = tmp_path / "root" / val.partition("/")[0]
    link.symlink_to(tmp_path / "elsewhere" if "/" in val else tmp_path / "elsewhere" / val)
    each = 4 if kind == "features" else 1
    assert [item.split for item in opener(tmp_path / "root").items] == ["train"] * each + ["val"] * each


def test_loops_and_hidden_folders_are_left_out(kind: str, tmp_path: Path) -> None:
    opener, folders = SOURCES[kind]
    for folder in folders:
        put(tmp_path / folder / name_of(kind, "x"))
        put(tmp_path / folder / "deep" / name_of(kind, "y"))
        put(tmp_path / folder / ".cache" / name_of(kind, "hidden"))
        put(tmp_path / folder / "@eaDir" / name_of(kind, "thumbnail"))
        put(tmp_path / folder / name_of(kind, "._x"))
        (tmp_path / folder / "loop").symlink_to(tmp_path / folder)
        (tmp_path / folder / "above").symlink_to(tmp_path.parent)
        (tmp_path / folder / "itself").symlink_to(tmp_path / folder / "itself")
    put(tmp_path / ".trash" / name_of(kind, "old"))
    found = {item.key.rpartition("/")[0] if kind == "features" else item.key for item in opener(tmp_path).items}
    assert found == {f"{folder}/{name_of(kind, name)}" for folder in folders for name in ("x", "deep/y")}


def test_held_out_data_that_is_a_link_to_training_data_is_refused(kind: str, tmp_path: Path) -> None:
    opener, (train, val) = SOURCES[kind]
    put(tmp_path / train / name_of(kind, "x"))
    put(tmp_path / train / "deep" / name_of(kind, "y"))
    (tmp_path / val).parent.mkdir(exist_ok=True)
    (tmp_path / val).symlink_to(tmp_path / train / "deep")
    if kind == "coco":  # a folder without images directly in it is none of COCO's, so the link has to have some
        assert any((tmp_path / val).iterdir())
    with pytest.raises(DataError, match=f"{val} leads to {train}/deep, which is read there already"):
        opener(tmp_path)


def test_links_into_a_folder_of_everything_make_splits(tmp_path: Path) -> None:
    for part in ("one", "two"):
        put(tmp_path / "all" / part / f"{part}.png")
    (tmp_path / "train").symlink_to(tmp_path / "all" / "one")
    (tmp_path / "test").symlink_to(tmp_path / "all" / "two")
    items = FolderSource(tmp_path).items
    assert [(item.key, item.split) for item in items] == [("train/one.png", "train"), ("test/two.png", "val")]


def test_a_folder_with_two_links_is_read_once(tmp_path: Path) -> None:
    put(tmp_path / "elsewhere" / "x.png")
    for name in ("b", "a", "c"):
        (tmp_path / "root" / name).mkdir(parents=True)
        (tmp_path / "root" / name / "link").symlink_to(tmp_path / "elsewhere")
    tree = walk(tmp_path / "root", (".png",))
    assert tree.files == ("a/link/x.png",)
    assert tree.repeated == (("b/link", "a/link"), ("c/link", "a/link"))
    assert FolderSource(tmp_path / "root").notes == ("not read twice, though links lead there: b/link, c/link",)


def test_a_folder_that_is_gone_is_reported(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere' cannot be read \(No such file or directory\)"):
        walk(tmp_path / "nowhere", (".png",))


def test_suffixes_may_have_any_case(tmp_path: Path) -> None:
    put(tmp_path / "a.NPY")
    assert len(FeatureSource(tmp_path).items) == 4
    assert len(FeatureSource(tmp_path / "a.NPY").items) == 4
    assert FeatureSource(tmp_path).load(3).shape == (16, 8)


def test_a_folder_reads_what_compress_reads(tmp_path: Path) -> None:
    Image.init()
    known = {suffix: form for suffix, form in Image.registered_extensions().items() if form in Image.OPEN}
    assert set(SUFFIXES) - {".mpo"} == {suffix for suffix, form in known.items() if form not in NOT_READ}
    made = 0
    for suffix in SUFFIXES:
        form = "JPEG" if suffix == ".mpo" else known[suffix]
        mode = {"MSP": "1", "XBM": "1", "PALM": "P", "BLP": "P"}.get(form, "F" if suffix == ".pfm" else "RGB")
        if form in Image.SAVE:
            Image.new(mode, (16, 16)).save(tmp_path / f"made{suffix.upper()}", format=form)
            made += 1
    source = FolderSource(tmp_path)
    assert len(source.items) == made > 40
    assert source.notes == ()
    for index, item in enumerate(source.items):
        assert source.load(index).tobytes() == open_image(tmp_path / item.key).tobytes()


def test_what_is_ignored_is_counted_by_suffix(tmp_path: Path) -> None:
    put(tmp_path / "a.png")
    for name in ("a.heic", "b.HEIC", "c/d.heic", "a.txt", "README", "b.tar.gz", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    expected = "3 .heic, 1 without a suffix, 1 .txt, 1 .gz"
    assert FolderSource(tmp_path).notes == (f"ignored by suffix: {expected}",)
    (tmp_path / "a.png").rename(tmp_path / "a.npz")
    with pytest.raises(DataError, match=r"no images in .*; it needs files such as \.jpg.* only 3 \.heic, 1 without a"):
        FolderSource(tmp_path)
    with pytest.raises(DataError, match=r"no tokens in .*; there are only 3 \.heic.* 1 \.npz"):
        FeatureSource(tmp_path)

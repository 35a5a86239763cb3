"""Folders with the names of splits declare the split or are refused: held-out images are never trained on unsaid."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokconv.cli.main import main
from tokconv.encoding.images import ImageSource
from tokconv.encoding.sources.coco import CocoSource
from tokconv.encoding.sources.features import FeatureSource
from tokconv.encoding.sources.folder import FolderSource, ImageNetSource
from tokconv.encoding.sources.splits import HELD_OUT, TRAIN, read_split
from tokconv.errors import DataError

SOURCES = {"folder": FolderSource, "imagenet": ImageNetSource, "features": FeatureSource}
SPELLINGS = (str.lower, str.capitalize, str.upper)

# Folders -> the names of the two splits. Where the first folder has a / , the images lie in class folders.
READ = {
    "train/a train/b val/a val/b test/a": ("train", "val"),
    "train/a train/b test/a test/b": ("train", "test"),
    "train/a validation/a testing/a extra/a": ("train", "validation"),
    "train/a val/a labels/": ("train", "val"),
    "train/a test/a __MACOSX/train/a @eaDir/x": ("train", "test"),
    "train2017/a val2017/a test2017/a": ("train2017", "val2017"),
    "train_256/a val_256/a": ("train_256", "val_256"),
    "seg_train/seg_train/a seg_test/seg_test/a seg_pred/seg_pred": ("seg_train", "seg_test"),
    "training_set/training_set/a test_set/test_set/a": ("training_set", "test_set"),
    "TrainImages/a TestImages/a": ("TrainImages", "TestImages"),
    "train/a/deep/er test/a/deep": ("train", "test"),
    "train/train test/train": ("train", "test"),
    "trainset/a holdout/a": ("trainset", "holdout"),
    "trainval/a test/a": ("trainval", "test"),
}
REFUSED = {
    "test cat dog": "'test' in .* seems to be held-out data",
    "val/a cat/a": "'val' in .* seems to be held-out data",
    "test .": "seems to be held-out data",
    "val test": "seems to be held-out data",
    "cat cat/test": "'test' in .*cat' seems to be held-out data",
    "train/cat train/dog train/test": "'test' in .*train' seems to be held-out data",
    "train test_images_2": "seems to be held-out data",
    "train2014 val2017": "seems to be held-out data",
    "trainA testA trainB testB": "several pairs of splits",
    "train2014 val2014 train2017 val2017": "several pairs of splits",
    "images/train images/val": "not at its top but in images/; give that folder: data.root=.*/images",
    "unpacked/data/train/a unpacked/data/test/a": "give that folder: data.root=.*/unpacked/data",
    "cat/train cat/test dog/train dog/test": "not at its top but in cat/, dog/; give one such folder",
    "train/a/train train/a/test val/a": "not at its top but in train/a/",
}
# Layouts of images without splits -> the classes.
CLASSES = {
    "cat dog": ("cat", "dog"),
    "bullet_train test_tube cat": ("bullet_train", "cat", "test_tube"),
    "bus train plane": ("bus", "plane", "train"),
    "value trainer tester": ("tester", "trainer", "value"),
    "cat/dev-board/x": ("cat",),
    "train/cat train/dog": ("cat", "dog"),
    "val/cat": ("cat",),
}


def put(root: Path, suffix: str, folders: Iterable[str]) -> Path:
    """Write a file into every folder, which "." makes the root; a folder that ends in / gets a text instead."""
    root.mkdir()
    for number, folder in enumerate(folders):
        place = root / folder
        place.mkdir(parents=True, exist_ok=True)
        if folder.endswith("/"):
            (place / f"{number}.txt").touch()
        elif suffix == ".npy":
            np.save(place / f"x{number}.npy", np.zeros((2, 4, 3), "f2"))
        else:
            (place / f"x{number}{suffix}").touch()
    return root


def open_in(kind: str, root: Path) -> ImageSource:
    return SOURCES[kind](root)


def sides(source: ImageSource) -> dict[str, str | None]:
    """Return the split of every file."""
    return {item.key.partition(".")[0]: item.split for item in source.items}


@pytest.mark.parametrize("kind", SOURCES)
def test_splits_are_never_classes(kind: str, tmp_path: Path) -> None:
    suffix = ".npy" if kind == "features" else ".png"
    for number, (layout, (train, held_out)) in enumerate(READ.items()):
        source = open_in(kind, put(tmp_path / str(number), suffix, layout.split()))
        expected = {
            f"{folder}/x{place}": side
            for place, folder in enumerate(layout.split())
            for name, side in ((train, "train"), (held_out, "val"))
            if folder.split("/")[0] == name
        }
        assert sides(source) == expected, layout
        assert kind == "features" or set(source.class_names) <= {"a", "b", "deep", "train"}, layout
        assert f"from {train}, held-out" in source.notes[0]


@pytest.mark.parametrize("kind", SOURCES)
def test_what_may_be_held_out_is_refused(kind: str, tmp_path: Path) -> None:
    suffix = ".npy" if kind == "features" else ".png"
    for number, (layout, says) in enumerate(REFUSED.items()):
        root = put(tmp_path / str(number), suffix, layout.split())
        with pytest.raises(DataError, match=rf"data\.root: .*{says}"):
            open_in(kind, root)


@pytest.mark.parametrize("kind", SOURCES)
def test_every_pair_of_names_in_every_spelling(kind: str, tmp_path: Path) -> None:
    """Beside the pair lie another split and a file; none of the held-out images is one to train on."""
    suffix = ".npy" if kind == "features" else ".png"
    pairs = itertools.product(TRAIN, HELD_OUT)
    for number, ((train, held_out), spell) in enumerate(itertools.product(pairs, SPELLINGS)):
        folders = [f"{spell(train)}/a", f"{spell(held_out)}/a", "notes/"]
        source = open_in(kind, put(tmp_path / f"{number}", suffix, folders))
        assert sides(source) == {f"{folders[0]}/x0": "train", f"{folders[1]}/x1": "val"}, folders


def test_other_folders_remain_classes(tmp_path: Path) -> None:
    for number, (layout, names) in enumerate(CLASSES.items()):
        source = FolderSource(put(tmp_path / str(number), ".png", layout.split()))
        assert source.class_names == names, layout
        assert set(sides(source).values()) == {None}


def test_a_class_and_a_split_of_one_name_are_not_guessed(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"holds train/ with folders of its own beside bus/; move the others away"):
        FolderSource(put(tmp_path / "root", ".png", ["train/cat", "train/dog", "bus"]))
    with pytest.raises(DataError, match=r"only one of train and test in .* has class folders"):
        FolderSource(put(tmp_path / "mixed", ".png", ["train/cat", "test"]))
    with pytest.raises(DataError, match=r"train/ in .* holds no images, only 1 \.txt, and val/ is held-out data"):
        FolderSource(put(tmp_path / "unread", ".png", ["train/", "val"]))


def test_images_beside_splits_belong_to_neither(tmp_path: Path) -> None:
    source = FolderSource(put(tmp_path / "root", ".png", ["train", "val", ".", "labels/"]))
    assert sides(source) == {"train/x0": "train", "val/x1": "val"}
    assert source.notes[1:] == ("left out: 1 image beside the splits", "ignored by suffix: 1 .txt")


def test_folders_around_images_are_no_classes(tmp_path: Path) -> None:
    root = put(tmp_path / "root", ".png", ["train/images", "valid/images", "test/images", "train/labels/"])
    source = FolderSource(root)
    assert source.class_names == ()
    assert sides(source) == {"train/images/x0": "train", "valid/images/x1": "val"}
    assert source.notes[1:] == ("left out: test", "ignored by suffix: 1 .txt")


def test_files_of_tokens_are_splits_by_their_names(tmp_path: Path) -> None:
    def write(root: Path, *names: str) -> Path:
        root.mkdir()
        for name in names:
            np.save(root / f"{name}.npy", np.zeros((1, 4, 3), "f2"))
        return root

    named = write(tmp_path / "named", "train", "test", "more")
    shards = write(tmp_path / "shards", *(f"{part}-{n:05d}-of-00002" for part in ("train", "val") for n in range(2)))
    prefixed = write(tmp_path / "prefixed", "clip336_train_0", "clip336_train_1", "clip336_val_0")
    for root, expected in ((named, "tv"), (shards, "ttvv"), (prefixed, "ttv")):
        assert "".join((item.split or "-")[0] for item in FeatureSource(root).items) == expected
    with pytest.raises(DataError, match=r"'test' in .* seems to be held-out data"):
        FeatureSource(write(tmp_path / "odd", "test", "clip"))


def test_coco_names_what_it_leaves_out(tmp_path: Path) -> None:
    source = CocoSource(put(tmp_path / "root", ".jpg", ["train2017", "val2017", "test2017", "annotations/"]))
    assert sides(source) == {"train2017/x0": "train", "val2017/x1": "val"}
    assert source.notes == ("training images from train2017, held-out images from val2017", "left out: test2017")


def test_data_sets_of_the_library_use_the_same_names(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    from tokconv.encoding.sources.huggingface import HuggingFaceSource

    one = datasets.Dataset.from_dict({"image": [Image.new("RGB", (4, 4))]}).cast_column("image", datasets.Image())
    for number, (names, expected, left_out) in enumerate(
        (
            (("Training", "TEST", "extra"), {"Training": "train", "TEST": "val"}, "extra"),
            (("train", "dev", "test"), {"train": "train", "dev": "val"}, "test"),
            (("train_sft", "test_sft"), {"train_sft": "train", "test_sft": "val"}, None),
            (("train", "more"), {"train": None}, "more"),
        )
    ):
        datasets.DatasetDict(dict.fromkeys(names, one)).save_to_disk(tmp_path / str(number))
        source = HuggingFaceSource(str(tmp_path / str(number)))
        assert {item.key.split("/")[0]: item.split for item in source.items} == expected
        assert source.notes[1:] == (() if left_out is None else (f"left out: {left_out}",))


@pytest.mark.parametrize("name", ["bus", "values", "contest", "strain", "latest", "develop", "train_test", "", "写真"])
def test_other_names_are_no_splits(name: str) -> None:
    assert read_split(name) is None


def test_commands_print_what_is_read_and_what_is_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for part, classes in (("train", [0, 11]), ("test", [3]), ("val", [3, 3])):
        tokens = torch.randn(len(classes), 4, 3)
        (tmp_path / "mine" / part).mkdir(parents=True)
        save_file({"tokens": tokens, "labels": torch.tensor(classes)}, tmp_path / "mine" / part / "x.safetensors")
    (tmp_path / "mine" / "notes.txt").touch()
    words = ["data=features", "data.root=mine", "model.clip.model_name=a/b", "data.num_workers=0"]
    notes = [
        "mine: training tokens from train, held-out tokens from val",
        "mine: left out: test",
        "mine: ignored by suffix: 1 .txt",
    ]
    assert main(["encode", *words, "--plan", "--images-per-second", "1"]) == 0
    assert capsys.readouterr().out.splitlines()[:3] == notes
    assert main(["encode", *words]) == 0
    *printed, store = capsys.readouterr().out.splitlines()
    assert printed[:3] == notes
    counts, classes, sizes = store[:-1].partition("(")[2].split("; ")
    assert counts == "4 images, 2 for training and 2 held out"
    assert classes == "12 classes: 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ..."
    assert sizes == "4 tokens of 3 channels"

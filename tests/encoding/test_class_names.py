"""Labels follow the names of the classes: two parts of a data set may number the same classes differently."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tokconv.encoding.sources.base import ImageSource
from tokconv.encoding.sources.coco import CocoSource
from tokconv.encoding.sources.features import FeatureSource
from tokconv.encoding.sources.folder import FolderSource, ImageNetSource
from tokconv.errors import DataError

CLASSES = {"train": ["cat", "dog", "owl"], "val": ["cat", "owl"]}
"""The second one is numbered 1 in val and 2 in train."""
FOUND = [("train", "cat"), ("train", "dog"), ("train", "owl"), ("val", "cat"), ("val", "owl")]


def write_folders(root: Path) -> FolderSource:
    for part, names in CLASSES.items():
        for name in names:
            (root / part / name).mkdir(parents=True)
            Image.new("RGB", (8, 8)).save(root / part / name / "x.png")
    return FolderSource(root)


def write_coco(root: Path, classes: Mapping[str, Sequence[str]] = CLASSES) -> CocoSource:
    for part, names in classes.items():
        (root / part).mkdir(parents=True)
        (root / "annotations").mkdir(exist_ok=True)
        for number in range(len(names)):
            Image.new("RGB", (8, 8)).save(root / part / f"{number}.png")
        content = {
            "images": [{"id": number, "file_name": f"{number}.png"} for number in range(len(names))],
            "categories": [{"id": number, "name": name} for number, name in enumerate(names)],
            "annotations": [{"image_id": number, "category_id": number, "area": 1} for number in range(len(names))],
        }
        (root / "annotations" / f"instances_{part}.json").write_text(json.dumps(content))
    return CocoSource(root)


def write_features(root: Path) -> FeatureSource:
    for part, names in CLASSES.items():
        (root / part).mkdir(parents=True)
        tensors = {"tokens": torch.randn(len(names), 4, 8), "labels": torch.arange(len(names))}
        save_file(tensors, root / part / "x.safetensors", {"class_names": json.dumps(names)})
    return FeatureSource(root)


def saved_data_set(root: Path, val: Any = None, train: Any = None) -> ImageSource:
    """Save a data set whose labels are those of CLASSES, or texts or integers; None leaves class labels."""
    datasets = pytest.importorskip("datasets")
    from tokconv.encoding.sources.huggingface import HuggingFaceSource

    parts = {}
    for (part, names), values in zip(CLASSES.items(), (train, val), strict=True):
        kind = datasets.ClassLabel(names=names)
        if values is not None:
            kind = datasets.Value("string" if isinstance(values[0], str) else "int64")
        features = datasets.Features({"image": datasets.Image(), "label": kind})
        columns = {"image": [Image.new("RGB", (8, 8))] * len(names), "label": values or list(range(len(names)))}
        parts[part] = datasets.Dataset.from_dict(columns, features=features)
    datasets.DatasetDict(parts).save_to_disk(root)
    return HuggingFaceSource(str(root), label_column="label")


@pytest.mark.parametrize(
    "write",
    [
        write_folders,
        lambda root: ImageNetSource(write_folders(root).root),
        write_coco,
        write_features,
        saved_data_set,
        lambda root: saved_data_set(root, val=["cat", "owl"]),
    ],
    ids=["folder", "imagenet", "coco", "features", "huggingface", "huggingface with texts"],
)
def test_labels_follow_names(write: Any, tmp_path: Path) -> None:
    source = write(tmp_path / "root")
    assert source.class_names == ("cat", "dog", "owl")
    assert [(item.split, source.class_names[item.label]) for item in source.items] == FOUND


def test_classes_that_cannot_be_matched_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="class names in one split and integers in another"):
        saved_data_set(tmp_path / "set", val=[0, 1])
    with pytest.raises(DataError, match="category 1 'bird', another file 'dog'"):
        write_coco(tmp_path / "coco", {"train": ["cat", "dog"], "val": ["cat", "bird"]})
    write_features(tmp_path / "features")
    path = tmp_path / "features" / "val" / "x.safetensors"
    tensors = {"tokens": torch.randn(2, 4, 8), "labels": torch.tensor([0, 1])}
    for names, says in (
        (None, "names its classes"),
        ('["a"]', "names only 1 classes"),
        ('["a", "a"]', "distinct names"),
    ):
        save_file(tensors, path, None if names is None else {"class_names": names})
        with pytest.raises(DataError, match=says):
            FeatureSource(tmp_path / "features")


def test_integers_below_0_are_no_label(tmp_path: Path) -> None:
    source = saved_data_set(tmp_path / "set", train=[7, -1, 9], val=[9, -1])
    assert source.class_names == ("7", "9")
    assert [item.label for item in source.items] == [0, None, 1, 1, None]

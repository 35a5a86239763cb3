"""COCO folders: labels from areas, splits from folders, missing and damaged annotations."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from support.towers import write_tower

from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.images import ImageItem, open_source
from tokconv.encoding.pipeline import encode
from tokconv.encoding.sources.coco import CocoSource
from tokconv.errors import DataError
from tokconv.evaluation.evaluator import Evaluator

CATEGORIES = [
    {"supercategory": "animal", "id": 18, "name": "dog"},
    {"supercategory": "person", "id": 1, "name": "person"},
    {"supercategory": "animal", "id": 17, "name": "cat"},
]
PERSON, CAT, DOG = 0, 1, 2


def annotation(number: int, image: int, category: int, area: float | None, **more: Any) -> dict[str, Any]:
    outline = [[10.0, 10.0, 20.0, 10.0, 20.0, 15.0]]
    known = {} if area is None else {"area": area}
    box = {"segmentation": outline, "iscrowd": 0, "bbox": [10.0, 10.0, 10.0, 5.0]}
    return {"id": number, "image_id": image, "category_id": category, **box, **known, **more}


def write_photos(folder: Path, *numbers: int) -> list[dict[str, Any]]:
    """Write JPEG files with COCO's names, and return their entries for an instances file."""
    folder.mkdir(parents=True)
    for number in numbers:
        Image.effect_noise((24, 20), 10 * number % 100 + 20).convert("RGB").save(folder / f"{number:012d}.jpg")
    return [
        {"license": 3, "file_name": f"{n:012d}.jpg", "height": 20, "width": 24, "id": n, "date_captured": "2013-11-14"}
        for n in numbers
    ]


def write_instances(root: Path, part: str, images: list[dict[str, Any]], *annotations: dict[str, Any]) -> Path:
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"info": {"year": 2017}, "licenses": [], "images": images, "categories": CATEGORIES}
    path.write_text(json.dumps({**content, "annotations": annotations}))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "coco"
    train = write_photos(root / "train2017", 9, 25, 30, 34)
    val = write_photos(root / "val2017", 139, 285)
    write_photos(root / "test2017", 1)
    write_instances(
        root,
        "train2017",
        train,
        # Two small dogs cover more area than one cat; a crowd counts as well.
        annotation(1, 9, 18, 300.5),
        annotation(2, 9, 17, 500.0),
        annotation(3, 9, 18, 250, iscrowd=1, segmentation={"counts": [1, 2], "size": [20, 24]}),
        # For equal areas, the lower id wins.
        annotation(4, 25, 18, 50),
        annotation(5, 25, 17, 50.0),
        # Without an area the box counts, here 50.
        annotation(6, 30, 17, 49.0),
        annotation(7, 30, 1, None),
        annotation(8, 777, 1, 5.0),
    )
    write_instances(root, "val2017", val, annotation(9, 285, 1, 0.0))
    return root


def test_the_label_is_the_category_of_the_greatest_area(root: Path) -> None:
    source = CocoSource(root)
    assert source.class_names == ("person", "cat", "dog")
    assert source.items == (
        ImageItem("train2017/000000000009.jpg", DOG, "train"),
        ImageItem("train2017/000000000025.jpg", CAT, "train"),
        ImageItem("train2017/000000000030.jpg", PERSON, "train"),
        ImageItem("train2017/000000000034.jpg", None, "train"),
        ImageItem("val2017/000000000139.jpg", None, "val"),
        ImageItem("val2017/000000000285.jpg", PERSON, "val"),
    )
    assert source.load(0).size == (24, 20)
    assert len(pickle.dumps(source)) < 2000


def test_identity_depends_on_images_and_labels_but_not_on_the_place(root: Path, tmp_path: Path) -> None:
    first = CocoSource(root).identity()
    moved = root.rename(tmp_path / "elsewhere")
    assert CocoSource(moved).identity() == first
    path = moved / "annotations" / "instances_val2017.json"
    content = json.loads(path.read_text())
    content["annotations"][0]["category_id"] = 17
    path.write_text(json.dumps(content))
    assert CocoSource(moved).identity() != first


def test_a_single_folder_declares_no_split(root: Path) -> None:
    (root / "val2017").rename(root / "other")
    source = CocoSource(root)
    assert [(item.label, item.split) for item in source.items] == [
        (DOG, None),
        (CAT, None),
        (PERSON, None),
        (None,) * 2,
    ]


@pytest.mark.parametrize("captions", [True, False])
def test_without_instances_nothing_is_labelled(root: Path, captions: bool) -> None:
    for path in (root / "annotations").iterdir():
        path.rename(path.with_name(path.name.replace("instances", "captions"))) if captions else path.unlink()
    source = CocoSource(root)
    assert source.class_names == ()
    assert {item.label for item in source.items} == {None}
    assert [item.split for item in source.items] == ["train"] * 4 + ["val"] * 2


def test_an_instances_file_without_annotations_labels_nothing(root: Path) -> None:
    (root / "annotations" / "instances_val2017.json").unlink()
    write_instances(root, "train2017", write_photos(root / "spare", 9))
    assert CocoSource(root).class_names == ()


def test_one_of_several_years_must_be_chosen(root: Path) -> None:
    write_photos(root / "val2014", 9)
    with pytest.raises(DataError, match=r"several years.*data\.name: 2014, 2017"):
        CocoSource(root)
    assert len(CocoSource(root, year="2017").items) == 6
    source = open_source(DataConfig(source="coco", root=str(root), name="2014"))
    assert source.items == (ImageItem("val2014/000000000009.jpg"),)
    with pytest.raises(DataError, match=r"no images in train2015 or val2015"):
        CocoSource(root, year="2015")


def test_other_layouts_are_refused(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="there is no folder"):
        CocoSource(tmp_path / "absent")
    (root / "test2017" / "train").mkdir()
    for folder in (root / "annotations", root / "test2017"):
        with pytest.raises(DataError, match=r"COCO's folders of images.*data\.source=folder"):
            CocoSource(folder)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda text: text[:-20], "not a readable COCO instances file"),
        (lambda text: "[]", "not a readable COCO instances file"),
        (lambda text: text.replace('"annotations"', '"notes"'), "has no 'annotations'"),
        (
            lambda text: text.replace('"category_id": 1}', '"category_id": 99}').replace('"id": 1,', '"id": 2,'),
            "unknown",
        ),
        (lambda text: text.replace('"area": 500.0', '"area": NaN'), "annotation 2 has the area nan"),
        (lambda text: text.replace('"area": 500.0', '"area": -1'), "annotation 2 has the area -1"),
        (lambda text: text.replace('"area": 500.0', '"bbox": [0, 0]'), "not a readable COCO instances file"),
        (lambda text: text.replace("00000000", "x"), "describes none of the images in train2017"),
        (
            lambda text: text.replace('"name": "dog"', '"name": "hound"'),
            "category 18 'dog', another file 'hound'",
        ),
        (lambda text: "\x00\xff", "not a readable COCO instances file"),
    ],
)
def test_damaged_annotations_are_reported_in_one_line(root: Path, change: Any, reason: str) -> None:
    path = root / "annotations" / "instances_train2017.json"
    path.write_bytes(change(path.read_text()).encode("latin-1"))
    with pytest.raises(DataError, match=reason) as raised:
        CocoSource(root)
    assert str(raised.value).startswith("data.root: ")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("workers", [0, 1])
def test_from_folder_to_store_and_figures(root: Path, tmp_path: Path, workers: int) -> None:
    (root / "train2017" / "000000000025.jpg").write_bytes(b"not an image")
    clip = ClipConfig(model_name=str(write_tower(tmp_path / "tower")))
    data = DataConfig(source="coco", root=str(root), store=str(tmp_path / "store"), num_workers=workers)
    store = encode(Config(model=ModelConfig(clip=clip), data=data), device="cpu")
    assert store.class_names == ("person", "cat", "dog")
    assert store.labels is not None
    assert store.labels.tolist() == [DOG, PERSON, -1, -1, PERSON]
    assert store.train_indices.tolist() == [0, 1, 2]
    assert store.val_indices.tolist() == [3, 4]
    assert [image.item for image in store.skipped] == [1]
    # The probe is trained and evaluated on the labelled images alone.
    figures = Evaluator(store, 2).evaluate(lambda tokens: (tokens[:, ::4], tokens))
    assert figures["val/probe_accuracy"] in (0.0, 1.0)

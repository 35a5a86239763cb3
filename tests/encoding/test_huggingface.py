"""Hugging Face data sets: saved ones, parquet, image folders; columns, splits and labels, all without network."""

from __future__ import annotations

import io
import pickle
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from support.towers import write_tower

from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.images import open_source
from tokconv.encoding.pipeline import encode
from tokconv.encoding.sources.huggingface import HuggingFaceSource
from tokconv.errors import DataError

datasets: Any = pytest.importorskip("datasets")
NAMES = ["cat", "dog", "owl"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set an empty cache, and a hub that cannot be reached."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("datasets.config.HF_ENDPOINT", "http://127.0.0.1:9")


def jpeg(number: int) -> dict[str, Any]:
    file = io.BytesIO()
    Image.effect_noise((20, 16), 20 + number % 80).convert("RGB").save(file, "jpeg")
    return {"bytes": file.getvalue(), "path": None}


def make(labels: Sequence[int | None], **more: Any) -> Any:
    """Return a data set of JPEGs with class labels."""
    kinds = {"image": datasets.Image(), "label": datasets.ClassLabel(names=NAMES)}
    columns = {"image": [jpeg(number) for number in range(len(labels))], "label": list(labels)}
    made = datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))
    for name, column in more.items():
        made = made.add_column(name, column)
    return made


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    splits = {"train": make([2, 0, -1, 1, 0]), "validation": make([1, None]), "test": make([-1, -1])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "saved")
    return tmp_path / "saved"


def write_parquet(root: Path) -> Path:
    """Write the layout that the hub itself uses: data/SPLIT-NNNNN-of-NNNNN.parquet."""
    (root / "data").mkdir(parents=True)
    make([2, 0, 1]).to_parquet(root / "data" / "train-00000-of-00002.parquet")
    make([1]).to_parquet(root / "data" / "train-00001-of-00002.parquet")
    make([0, 2]).to_parquet(root / "data" / "test-00000-of-00001.parquet")
    return root


def rows(source: HuggingFaceSource) -> list[tuple[str, int | None, str | None]]:
    return [(item.key, item.label, item.split) for item in source.items]


def test_a_saved_data_set_has_labels_and_splits(saved: Path) -> None:
    source = HuggingFaceSource(str(saved))
    assert source.class_names == ("cat", "dog", "owl")
    assert rows(source) == [
        ("train/00000000", 2, "train"),
        ("train/00000001", 0, "train"),
        ("train/00000002", None, "train"),
        ("train/00000003", 1, "train"),
        ("train/00000004", 0, "train"),
        ("validation/00000000", 1, "val"),
        ("validation/00000001", None, "val"),
    ]
    first = datasets.load_from_disk(saved)["train"][4]["image"].convert("RGB")
    np.testing.assert_array_equal(np.asarray(source.load(4)), np.asarray(first))
    last = datasets.load_from_disk(saved)["validation"][1]["image"].convert("RGB")
    np.testing.assert_array_equal(np.asarray(source.load(6)), np.asarray(last))


def test_a_saved_single_split_declares_none(tmp_path: Path) -> None:
    make([0, 1, 2]).save_to_disk(tmp_path / "one")
    source = HuggingFaceSource(str(tmp_path / "one"))
    assert rows(source) == [("all/00000000", 0, None), ("all/00000001", 1, None), ("all/00000002", 2, None)]
    with pytest.raises(DataError, match=r"data\.name: .* written by save_to_disk"):
        HuggingFaceSource(str(tmp_path / "one"), config_name="plain")


def test_parquet_files_are_read(tmp_path: Path) -> None:
    source = HuggingFaceSource(str(write_parquet(tmp_path / "set")))
    assert source.class_names == ("cat", "dog", "owl")
    assert [(item.label, item.split) for item in source.items] == [
        (2, "train"),
        (0, "train"),
        (1, "train"),
        (1, "train"),
        (0, "val"),
        (2, "val"),
    ]
    assert source.load(5).size == (20, 16)


def test_an_image_folder_is_read_upright(tmp_path: Path) -> None:
    for name in ("train/cat/a.jpg", "train/dog/b.png", "validation/dog/c.png"):
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.effect_noise((9, 7), 40).save(path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "folder" / "train" / "cat" / "a.jpg", exif=exif)
    source = HuggingFaceSource(str(tmp_path / "folder"))
    assert source.class_names == ("cat", "dog")
    assert [(item.label, item.split) for item in source.items] == [(0, "train"), (1, "train"), (1, "val")]
    assert source.load(0).size == (4, 8)
    assert source.load(2).mode == "RGB"
    (tmp_path / "folder" / "validation" / "dog" / "c.png").unlink()
    with pytest.raises(FileNotFoundError):
        source.load(2)
    assert source.stats([0, 2])[1].tolist() == [-1, -1]


def test_identity_depends_on_content_and_not_on_place(saved: Path, tmp_path: Path) -> None:
    for root in (saved, write_parquet(tmp_path / "set")):
        first = HuggingFaceSource(str(root)).identity()
        moved = Path(shutil.copytree(root, tmp_path / "moved" / root.name))
        assert HuggingFaceSource(str(moved)).identity() == first
    other = make([2, 0, -1, 1, 0])
    other = other.map(lambda row, index: {"image": jpeg(50 + index)}, with_indices=True, load_from_cache_file=False)
    splits = {"train": other, "validation": make([1, None])}
    datasets.DatasetDict(splits).save_to_disk(tmp_path / "other")
    source = HuggingFaceSource(str(tmp_path / "other"))
    assert rows(source) == rows(HuggingFaceSource(str(saved)))
    assert source.content(0) != HuggingFaceSource(str(saved)).content(0)


def test_workers_get_a_small_source(tmp_path: Path) -> None:
    make([0, 1] * 200).save_to_disk(tmp_path / "many")
    source = HuggingFaceSource(str(tmp_path / "many"))
    text = pickle.dumps(source)
    # The images are left out: a key takes some 60 bytes, an image many hundreds.
    assert len(text) < 400 * 100
    again = pickle.loads(text)
    assert again.items == source.items
    assert again.load(399).tobytes() == source.load(399).tobytes()


def test_columns_are_chosen_by_name(tmp_path: Path) -> None:
    root = tmp_path / "set"
    made = make([0, 1, 2], breed=["b", "a", "b"], number=[7, 10, 9], score=[0.5, 0.1, 0.2])
    made = made.add_column("other", made["label"][:]).cast_column("other", datasets.ClassLabel(names=NAMES))
    made.save_to_disk(root)
    with pytest.raises(DataError, match=r"data\.label_column: .* has several \(label, other\); name one"):
        HuggingFaceSource(str(root))
    source = HuggingFaceSource(str(root), label_column="breed")
    assert (source.class_names, [item.label for item in source.items]) == (("a", "b"), [1, 0, 1])
    source = HuggingFaceSource(str(root), label_column="number")
    assert (source.class_names, [item.label for item in source.items]) == (("7", "9", "10"), [0, 2, 1])
    with pytest.raises(DataError, match="neither class labels, integers nor texts"):
        HuggingFaceSource(str(root), label_column="score")
    with pytest.raises(DataError, match=r"data\.image_column: .* no column 'imgae'; did you mean image\?"):
        HuggingFaceSource(str(root), image_column="imgae")
    with pytest.raises(DataError, match="as an image data set"):
        HuggingFaceSource(str(root), image_column="number", label_column="label")


@pytest.mark.parametrize("kind", ["bytes", "struct", "path"])
def test_a_named_column_may_hold_bytes_or_paths(kind: str, tmp_path: Path) -> None:
    cells = [jpeg(number) for number in range(3)]
    if kind == "bytes":
        column: list[Any] = [cell["bytes"] for cell in cells]
    elif kind == "struct":
        column = [{"bytes": cell["bytes"], "path": "x.jpg"} for cell in cells]
    else:
        column = [str(tmp_path / f"{number}.jpg") for number in range(3)]
        for cell, path in zip(cells, column, strict=True):
            Path(path).write_bytes(cell["bytes"])
    datasets.Dataset.from_dict({"picture": column}).save_to_disk(tmp_path / "set")
    with pytest.raises(DataError, match=r"no column of images \(picture\); name one in data\.image_column"):
        HuggingFaceSource(str(tmp_path / "set"))
    source = HuggingFaceSource(str(tmp_path / "set"), image_column="picture")
    assert source.class_names == ()
    assert {source.load(index).size for index in range(3)} == {(20, 16)}


def test_ambiguous_splits_are_refused(tmp_path: Path) -> None:
    datasets.DatasetDict({"a": make([0]), "b": make([1])}).save_to_disk(tmp_path / "odd")
    with pytest.raises(DataError, match="has the splits a, b; name one of them train"):
        HuggingFaceSource(str(tmp_path / "odd"))
    (tmp_path / "empty").mkdir()
    make([]).to_parquet(tmp_path / "empty" / "train.parquet")
    with pytest.raises(DataError, match=r"no images in|corresponds to no data"):
        HuggingFaceSource(str(tmp_path / "empty"))


def test_directories_without_a_data_set_are_refused(tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"cannot read .* as an image data set"):
        HuggingFaceSource(str(tmp_path / "nothing"))
    (tmp_path / "script").mkdir()
    (tmp_path / "script" / "script.py").write_text("raise SystemExit")
    with pytest.raises(DataError, match="scripts are no longer supported"):
        HuggingFaceSource(str(tmp_path / "script"))
    broken = write_parquet(tmp_path / "broken") / "data" / "train-00000-of-00002.parquet"
    broken.write_bytes(broken.read_bytes()[:100])
    with pytest.raises(DataError, match=r"cannot read .* as an image data set"):
        HuggingFaceSource(str(tmp_path / "broken"))


@pytest.mark.parametrize("name", ["/no/such/set", "./set", "~/no-such-set", "a/b/c", "C:\\sets\\birds"])
def test_a_missing_path_fails_without_asking_the_hub(name: str) -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="there is no directory"):
        HuggingFaceSource(name)
    assert time.monotonic() - start < 2


def test_an_unreachable_name_fails_in_seconds() -> None:
    start = time.monotonic()
    with pytest.raises(DataError, match="neither a directory nor reachable on the Hugging Face hub nor cached"):
        HuggingFaceSource("lab/no-such-set")
    assert time.monotonic() - start < 8
    assert not datasets.config.HF_HUB_OFFLINE


def test_a_cached_name_needs_no_network(tmp_path: Path) -> None:
    local = HuggingFaceSource(str(write_parquet(tmp_path / "birds")))
    # The place where the library keeps a download of this name.
    prepared = next((tmp_path / "cache" / "birds").glob("*/*/*/dataset_info.json")).parent
    place = tmp_path / "cache" / "lab___birds" / "default" / "0.0.0" / "c0ffee"
    shutil.copytree(prepared, place)
    source = HuggingFaceSource("lab/birds")
    assert source.items == local.items
    assert source.identity() == local.identity()


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("layout", ["saved", "parquet"])
def test_a_data_set_becomes_a_store(layout: str, workers: int, saved: Path, tmp_path: Path) -> None:
    root = saved if layout == "saved" else write_parquet(tmp_path / "set")
    data = DataConfig(source="huggingface", root=str(root), store=str(tmp_path / "store"), num_workers=workers)
    clip = ClipConfig(model_name=str(write_tower(tmp_path / "tower")))
    store = encode(Config(model=ModelConfig(clip=clip), data=data), device="cpu")
    source = open_source(data)
    assert store.keys == tuple(item.key for item in source.items)
    assert store.class_names == ("cat", "dog", "owl")
    assert store.labels is not None
    assert store.labels.tolist() == [-1 if item.label is None else item.label for item in source.items]
    assert store.val_indices.tolist() == [n for n, item in enumerate(source.items) if item.split == "val"]


def test_damaged_rows_are_skipped_and_listed(tmp_path: Path) -> None:
    cells: list[Any] = [
        jpeg(0),
        None,
        {"bytes": b"no image", "path": None},
        jpeg(1),
    ]
    made = datasets.Dataset.from_dict({"image": cells}, features=datasets.Features({"image": datasets.Image()}))
    made.save_to_disk(tmp_path / "set")
    data = DataConfig(source="huggingface", root=str(tmp_path / "set"), store=str(tmp_path / "store"), num_workers=0)
    clip = ClipConfig(model_name=str(write_tower(tmp_path / "tower")))
    store = encode(Config(model=ModelConfig(clip=clip), data=data), device="cpu")
    assert [image.reason for image in store.skipped] == [
        "ValueError: no image in this row",
        "UnidentifiedImageError: no image that Pillow can read",
    ]
    assert store.keys == ("all/00000000", "all/00000003")

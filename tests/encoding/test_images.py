"""Image sources: which images they find, how they split them, and how unusual files are opened."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tokconv.config.tree import DataConfig
from tokconv.encoding.images import ImageItem, SubsetSource, assign_split, open_source
from tokconv.encoding.sources.bundled import DigitsSource, PhotographsSource
from tokconv.encoding.sources.files import open_image
from tokconv.encoding.sources.folder import FolderSource, ImageNetSource
from tokconv.errors import ConfigError, DataError


def write_images(root: Path, *names: str) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (6, 4), (number * 20, 0, 0)).save(root / name)
    return root


def test_subfolders_are_classes(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path, "dog/b.png", "cat/deep/a.JPG", "cat/.hidden.png", ".git/x.png"))
    assert source.class_names == ("cat", "dog")
    assert source.items == (ImageItem("cat/deep/a.JPG", 0), ImageItem("dog/b.png", 1))
    assert source.load(1).size == (6, 4)


def test_images_in_the_root_have_no_classes(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path, "b.png", "sub/a.png"))
    assert source.class_names == ()
    assert source.items == (ImageItem("b.png"), ImageItem("sub/a.png"))


@pytest.mark.parametrize("kind", [FolderSource, ImageNetSource])
def test_train_and_val_are_splits(tmp_path: Path, kind: type[FolderSource]) -> None:
    source = kind(write_images(tmp_path, "train/n1/a.png", "train/n2/b.png", "val/n2/c.png"))
    assert source.class_names == ("n1", "n2")
    assert [(item.label, item.split) for item in source.items] == [(0, "train"), (1, "train"), (1, "val")]


def test_train_without_val_declares_no_split(tmp_path: Path) -> None:
    source = ImageNetSource(write_images(tmp_path, "train/n1/a.png", "train/n2/b.png"))
    assert {item.split for item in source.items} == {None}


def test_split_folders_need_no_classes_in_a_plain_folder(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path, "train/a.png", "val/b.png"))
    assert source.items == (ImageItem("train/a.png", None, "train"), ImageItem("val/b.png", None, "val"))
    with pytest.raises(DataError, match="train/CLASS/"):
        ImageNetSource(tmp_path)


def test_classes_in_only_one_split_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="only one of train and val"):
        FolderSource(write_images(tmp_path, "train/n1/a.png", "val/b.png"))


def test_a_class_layout_is_not_imagenet(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.source=folder"):
        ImageNetSource(write_images(tmp_path, "cat/a.png"))


def test_links_are_followed_except_loops(tmp_path: Path) -> None:
    write_images(tmp_path / "elsewhere", "a.png")
    root = write_images(tmp_path / "root", "cat/b.png")
    (root / "dog").symlink_to(tmp_path / "elsewhere")
    (root / "cat" / "loop").symlink_to(root)
    (root / "cat" / "dangling.png").symlink_to(root / "nowhere.png")
    source = FolderSource(root)
    assert {"cat/b.png", "dog/a.png", "cat/dangling.png"} <= {item.key for item in source.items}
    assert len(source.items) < 10


def test_missing_and_empty_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.root: there is no folder"):
        open_source(DataConfig(source="folder", root=str(tmp_path / "none")))
    with pytest.raises(DataError, match="no images"):
        open_source(DataConfig(source="folder", root=str(tmp_path)))


def test_identity_depends_on_content_and_not_on_place(tmp_path: Path) -> None:
    source = FolderSource(write_images(tmp_path / "one", "a.png", "b.png"))
    first, content = source.identity(), source.content(0)
    (tmp_path / "one").rename(tmp_path / "two")
    assert FolderSource(tmp_path / "two").identity() == first
    assert FolderSource(tmp_path / "two").content(0) == content
    Image.effect_noise((50, 50), 90).save(tmp_path / "two" / "a.png")
    assert FolderSource(tmp_path / "two").content(0) != content


def test_digits_have_the_split_of_the_bundled_towers_training() -> None:
    datasets = pytest.importorskip("sklearn.datasets")
    source = DigitsSource()
    order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
    train = {index for index, item in enumerate(source.items) if item.split == "train"}
    assert train == set(order[:1400].tolist())
    digits = datasets.load_digits()
    assert [item.label for item in source.items] == digits.target.tolist()
    wanted = torch.from_numpy(digits.images[7] / 16 * 255).round().to(torch.uint8).numpy()
    np.testing.assert_array_equal(np.asarray(source.load(7))[..., 2], wanted)
    assert source.items[7].key == "digit-0007"
    held_out = [item.split for item in SubsetSource(source, 200).items].count("val")
    assert held_out == pytest.approx(200 * 397 / 1797, abs=15)


def test_photographs_are_held_out_with_all_their_views() -> None:
    pytest.importorskip("skimage")
    source = PhotographsSource()
    assert len(source.items) == 19 * 5
    sides = {(item.key.split("/")[0], item.split) for item in source.items}
    assert len(sides) == 19
    assert sum(split == "val" for _, split in sides) == 4
    whole, corner = source.load(0), source.load(4)
    assert corner.tobytes() == whole.crop((whole.width // 2, whole.height // 2, *whole.size)).tobytes()
    assert {source.load(index).mode for index in range(0, 95, 5)} == {"RGB"}


def test_a_missing_photograph_is_reported_and_does_not_shift_the_split(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("skimage")
    is_file = Path.is_file
    monkeypatch.setattr(Path, "is_file", lambda path: path.name != "moon.png" and is_file(path))
    with pytest.raises(DataError, match=r"data\.source=photographs: the installed scikit-image lacks moon\.png"):
        PhotographsSource()


def test_an_unknown_source_is_refused(tmp_path: Path) -> None:
    root = write_images(tmp_path, "a.png", "b.png")
    with pytest.raises(ConfigError, match=r"data\.source: got 'folders'; did you mean folder\?"):
        open_source(DataConfig(source="folders", root=str(root)))


def test_a_subset_is_fixed_and_ordered_and_keeps_both_sides(tmp_path: Path) -> None:
    names = [f"train/c/{number}.png" for number in range(9)]
    source = ImageNetSource(write_images(tmp_path, *names, "val/c/v.png"))
    for count in range(2, 10):
        subset = SubsetSource(source, count)
        assert subset.items == SubsetSource(source, count).items
        assert len(subset.items) == count
        assert list(subset.items) == sorted(subset.items, key=lambda item: item.key)
        assert {item.split for item in subset.items} == {"train", "val"}
    last = len(subset.items) - 1
    assert subset.load(last).tobytes() == source.load(len(source.items) - 1).tobytes()
    assert subset.identity() != source.identity()
    config = DataConfig(source="imagenet", root=str(tmp_path), subset=99)
    assert open_source(config).identity() == source.identity()


def test_sources_can_be_sent_to_workers(tmp_path: Path) -> None:
    source = SubsetSource(FolderSource(write_images(tmp_path, "a.png", "b.png", "c.png")), 2)
    again = pickle.loads(pickle.dumps(source))
    assert again.items == source.items
    assert again.load(0).tobytes() == source.load(0).tobytes()


def test_a_split_by_hash_is_stable_and_leaves_no_side_empty() -> None:
    items = [ImageItem(str(number)) for number in range(200)]
    splits = assign_split(items, 0.1)
    assert 8 <= splits.count("val") <= 35
    assert assign_split(items[:100], 0.1) == splits[:100]
    for count in (2, 3, 5):
        assert set(assign_split(items[:count], 0.001)) == set(assign_split(items[:count], 0.999)) == {"train", "val"}
    with pytest.raises(DataError, match="at least 2"):
        assign_split(items[:1], 0.1)


def test_declared_splits_take_precedence() -> None:
    items = [ImageItem("a", split="val"), ImageItem("b", split="train"), ImageItem("c", split="val")]
    assert assign_split(items, 0.1) == ["val", "train", "val"]


def save(path: Path, image: Image.Image, **options: Any) -> Path:
    image.save(path, **options)
    return path


def test_sixteen_bits_are_scaled_to_eight(tmp_path: Path) -> None:
    deep = Image.fromarray(np.full((4, 4), 32896, dtype=np.uint16))
    assert open_image(save(tmp_path / "deep.png", deep)).getpixel((0, 0)) == (128, 128, 128)


def test_transparency_becomes_white(tmp_path: Path) -> None:
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert open_image(save(tmp_path / "clear.png", clear)).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(("mode", "suffix"), [("CMYK", "jpg"), ("P", "gif"), ("1", "png"), ("LA", "png"), ("F", "tif")])
def test_every_mode_becomes_rgb(tmp_path: Path, mode: str, suffix: str) -> None:
    opened = open_image(save(tmp_path / f"image.{suffix}", Image.new(mode, (5, 3))))
    assert (opened.mode, opened.size) == ("RGB", (5, 3))


def test_images_are_upright_and_films_give_their_first_frame(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(save(tmp_path / "turned.jpg", Image.new("RGB", (8, 4)), exif=exif)).size == (4, 8)
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert open_image(tmp_path / "film.gif").getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize("compression", [None, "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "P", "RGB", "RGBA", "CMYK", "I;16"])
def test_a_tiff_that_lies_on_its_side_is_the_upright_image(tmp_path: Path, mode: str, compression: str | None) -> None:
    grey = Image.fromarray(np.arange(32, dtype=np.uint8).reshape(4, 8) * 8)
    image = Image.fromarray(np.asarray(grey, dtype=np.uint16) * 257) if mode == "I;16" else grey.convert(mode)
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = image.transpose(Image.Transpose.ROTATE_90)
    upright = open_image(save(tmp_path / "upright.tif", image, compression=compression))
    found = open_image(save(tmp_path / "turned.tif", turned, compression=compression, exif=exif))
    assert (found.size, found.tobytes()) == (upright.size, upright.tobytes())


def test_damaged_files_raise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "empty.png").touch()
    whole = save(tmp_path / "whole.png", Image.effect_noise((64, 64), 50)).read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.jpg").write_text("not an image")
    for name in ("empty.png", "cut.png", "text.jpg", "absent.png"):
        with pytest.raises((OSError, SyntaxError, ValueError)):
            open_image(tmp_path / name)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 3000)
    with pytest.raises(Image.DecompressionBombWarning):
        open_image(tmp_path / "whole.png")


def test_a_folder_of_everything_is_read_or_skipped_with_a_reason(tmp_path: Path) -> None:
    """Files that people have in their folders, opened through the source."""
    good = {
        "one pixel.png": Image.new("RGB", (1, 1)),
        "wide.png": Image.new("RGB", (20_000, 3)),
        "Фото 写真 📷.png": Image.new("RGB", (4, 4)),
        "palette.gif": Image.new("P", (4, 4)),
        "cmyk.jpg": Image.new("CMYK", (4, 4)),
        "deep.tif": Image.fromarray(np.full((4, 4), 40_000, dtype=np.uint16)),
    }
    for name, image in good.items():
        image.save(tmp_path / name)
    (tmp_path / "zero bytes.jpg").touch()
    (tmp_path / "not an image.png").write_text("text")
    (tmp_path / "dangling.png").symlink_to(tmp_path / "nowhere.png")
    (tmp_path / "loop.png").symlink_to(tmp_path / "loop.png")
    # A decompression bomb: 40,000 x 40,000 pixels in 200 kB.
    Image.new("1", (40_000, 40_000)).save(tmp_path / "bomb.png")
    (tmp_path / "a folder.png").mkdir()
    source = FolderSource(tmp_path)
    read, refused = [], {}
    for index, item in enumerate(source.items):
        try:
            image = source.load(index)
        except Exception as error:
            refused[item.key] = str(error)
            continue
        assert image.mode == "RGB"
        read.append(item.key)
    assert sorted(read) == sorted(good)
    assert sorted(refused) == ["bomb.png", "dangling.png", "loop.png", "not an image.png", "zero bytes.jpg"]
    assert all(refused.values())

"""A store is that of its images' content: what changed is named, what was only touched, copied or moved is the same."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from support.photos import write_photos
from support.towers import write_tower

import tokconv.encoding.shards
from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.images import open_source
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.encoding.sources.base import ImageSource
from tokconv.encoding.sources.folder import FolderSource
from tokconv.errors import StoreError
from tokconv.store.contents import FILES
from tokconv.store.format import StoreSettings
from tokconv.store.reader import TokenStore

NUM_IMAGES = 11


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def config(tower_dir: Path) -> Config:
    photos = write_photos(Path("photos"), NUM_IMAGES)
    for number, path in enumerate(sorted(photos.rglob("*.png"))):
        Image.effect_noise((20, 24), 20 + number).save(path.with_suffix(".bmp"))
        path.unlink()
    data = DataConfig(source="folder", root="photos", store="store", encode_batch_size=3, num_workers=0)
    return Config(model=ModelConfig(clip=ClipConfig(model_name=str(tower_dir))), data=data)


def overwrite(*numbers: int) -> list[str]:
    """Overwrite some photos by others of the same size in bytes; return their keys."""
    paths = [sorted(Path("photos").rglob("*.bmp"))[number] for number in numbers]
    for number, path in enumerate(paths):
        size = path.stat().st_size
        Image.effect_noise((20, 24), 100 + number).save(path)
        assert path.stat().st_size == size
        os.utime(path, ns=(1, 1 + number))
    return [path.relative_to("photos").as_posix() for path in paths]


def no_tower() -> Any:
    return mock.patch.object(tokconv.encoding.shards, "VisionTower", side_effect=AssertionError)


def test_images_of_the_same_names_and_sizes_are_another_data_set(config: Config) -> None:
    before = encode(config, device="cpu")
    changed = overwrite(0, 3, 4, 9)
    with pytest.raises(
        StoreError, match=r"data\.store: store was encoded from another .*4 \(.*\) of 11 images changed"
    ) as error:
        encode(config, device="cpu")
    assert all(key in str(error.value) for key in changed[:3])
    assert "choose another data.store" in str(error.value)
    assert TokenStore.open("store").fingerprint == before.fingerprint


def test_at_the_default_place_a_changed_data_set_gets_its_own_store(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    config.data.store = None
    shutil.copytree("photos", "backup")
    first = encode(config, device="cpu")
    overwrite(5)
    second = encode(config, device="cpu")
    assert "1 (" in (said := capsys.readouterr().out)
    assert "it gets a store of its own" in said
    assert second.path == first.path.with_name(f"{first.path.name}-2")
    assert (second.tokens(torch.arange(NUM_IMAGES)) != first.tokens(torch.arange(NUM_IMAGES))).flatten(1).any(
        1
    ).sum() == 1
    with no_tower():
        assert encode(config).fingerprint == second.fingerprint
        shutil.rmtree("photos")
        Path("backup").rename("photos")
        assert encode(config).fingerprint == first.fingerprint


def test_touched_and_copied_images_are_the_same_data_set(config: Config) -> None:
    store = encode(config, device="cpu")
    for number, path in enumerate(Path("photos").rglob("*.bmp")):
        os.utime(path, ns=(5, 5 + number))
    read: list[int] = []
    real = FolderSource.content

    def content(self: FolderSource, index: int) -> bytes:
        read.append(index)
        return real(self, index)

    with no_tower(), mock.patch.object(FolderSource, "content", content):
        assert encode(config).fingerprint == store.fingerprint
        assert len(read) == NUM_IMAGES
        with mock.patch("tokconv.encoding.changes.NUM_READ", 2):
            assert encode(config).fingerprint == store.fingerprint
    # 11 images: every fifth one, though size and time agree.
    assert len(read) == NUM_IMAGES + 3


def test_a_store_without_its_record_compares_contents(config: Config) -> None:
    store = encode(config, device="cpu")
    (store.path / FILES).unlink()
    with no_tower():
        assert encode(config).fingerprint == store.fingerprint
    overwrite(2)
    (store.path / FILES).write_bytes(b"damaged")
    with pytest.raises(StoreError, match=r"1 \(.*\) of 11 images changed"):
        encode(config, device="cpu")


def test_added_removed_and_moved_images_are_named(config: Config) -> None:
    encode(config, device="cpu")
    keys = [item.key for item in open_source(config.data).items]
    (Path("photos") / keys[0]).unlink()
    (Path("photos") / keys[1]).rename(Path("photos/dog/new.bmp"))
    with pytest.raises(StoreError, match=rf"1 \(dog/new\.bmp\) added, 2 \({keys[0]}, {keys[1]}\) removed"):
        encode(config, device="cpu")


def test_a_data_set_that_changes_while_encoding_is_interrupted(
    config: Config, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(BaseException):
        pass

    def interrupt(step: EncodeProgress) -> None:
        if step.done == 8:
            raise Stop

    with pytest.raises(Stop):
        encode(config, device="cpu", progress=interrupt)
    overwrite(1)
    resumed = encode(config, device="cpu")
    assert "shards again: 1" in capsys.readouterr().out
    config.data.store = "other"
    assert encode(config, device="cpu").fingerprint == resumed.fingerprint


def test_a_store_of_an_earlier_version_notices_changes_from_its_first_use_on(
    config: Config, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Earlier versions put sizes of some files into the settings, and no digests into the shards."""
    config.data.store = None
    with monkeypatch.context() as patch:
        patch.setattr(FolderSource, "identity", FolderSource.probed_identity)
        patch.setattr("tokconv.encoding.shards.digests", lambda contents: None)
        old = encode(config, device="cpu")
    (old.path / FILES).unlink()
    with no_tower():
        assert encode(config).fingerprint == old.fingerprint
    assert "changes are noticed from now on" in capsys.readouterr().out
    config.data.store = str(old.path)
    with no_tower():
        assert encode(config).fingerprint == old.fingerprint
    overwrite(7)
    with pytest.raises(StoreError, match=r"1 \(.*\) of 11 images changed; .* size and time decide"):
        encode(config, device="cpu")
    (old.path / FILES).unlink()
    assert encode(config, device="cpu").fingerprint == old.fingerprint
    next(Path("photos/cat").iterdir()).write_bytes(b"other size")
    (old.path / FILES).unlink()
    with pytest.raises(StoreError, match="the content of some images changed"):
        encode(config, device="cpu")


def test_moved_stores_and_read_only_stores(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    store = encode(config, device="cpu")
    Path("store").rename("moved")
    config.data.store = "moved"
    Path("photos").rename("elsewhere")
    config.data.root = "elsewhere"
    os.utime(next(Path("elsewhere").rglob("*.bmp")), ns=(3, 3))
    with no_tower(), mock.patch("tokconv.store.contents.atomic_path", side_effect=PermissionError):
        assert encode(config).fingerprint == store.fingerprint


def put_features(root: Path, seed: int) -> None:
    np.save(root, np.random.default_rng(seed).normal(size=(300, 4, 8)).astype("f4"))


def put_safetensors(root: Path, seed: int) -> None:
    from safetensors.torch import save_file

    save_file({"tokens": torch.randn(40, 4, 8, generator=torch.Generator().manual_seed(seed))}, root)


def put_data_set(root: Path, seed: int) -> None:
    """Images inside the data set, of the same size in bytes."""
    datasets = pytest.importorskip("datasets")
    noise = np.random.default_rng(seed).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)
    features = datasets.Features({"image": datasets.Image()})
    shutil.rmtree(root, ignore_errors=True)
    datasets.Dataset.from_dict({"image": [Image.fromarray(one) for one in noise]}, features=features).save_to_disk(root)


def put_linked_images(root: Path, seed: int) -> None:
    """A data set that names the files of its images."""
    pytest.importorskip("datasets")
    (root / "train").mkdir(parents=True, exist_ok=True)
    for number, one in enumerate(np.random.default_rng(seed).integers(0, 255, (5, 8, 8, 3), dtype=np.uint8)):
        Image.fromarray(one).save(root / "train" / f"{number}.bmp")


@pytest.mark.parametrize(
    ("source", "put"),
    [
        ("features", put_features),
        ("features", put_safetensors),
        ("huggingface", put_data_set),
        ("huggingface", put_linked_images),
    ],
)
def test_every_source_knows_the_content_of_its_files(
    source: str, put: Callable[[Path, int], None], tmp_path: Path
) -> None:
    root = tmp_path / ("root.npy" if put is put_features else "root.safetensors" if source == "features" else "root")

    def opened() -> tuple[ImageSource, torch.Tensor, list[bytes]]:
        found = open_source(DataConfig(source=source, root=str(root), image_column=None))
        everything = range(len(found.items))
        return found, found.stats(everything), [found.content(index) for index in everything]

    put(root, 0)
    first, stats, contents = opened()
    assert (stats > 0).all()
    # A file system stamps two writes within its clock's tick alike.
    time.sleep(0.02)
    put(root, 1)
    second, new_stats, new_contents = opened()
    assert first.identity() == second.identity()
    assert (stats != new_stats).any(1).all()
    assert not set(contents) & set(new_contents)
    put(root, 0)
    assert opened()[2] == contents


def test_settings_of_an_earlier_version_are_told_from_other_settings(config: Config) -> None:
    job = open_job(config)
    old = StoreSettings.from_json({**job.settings.to_json(), "source": job.source.probed_identity()})
    assert old.difference(job.settings) is None
    assert job.settings.difference(old) is not None

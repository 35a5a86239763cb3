"""Images to a store: reuse, resume, damaged images, two encoders at once, and no weights where none are needed."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
import threading
from pathlib import Path
from unittest import mock

import pytest
import torch
from PIL import Image
from support.photos import write_photos
from support.towers import write_tower
from torch.utils.data import get_worker_info

import tokconv.encoding.shards
import tokconv.store.format
from tokconv.config.tree import ClipConfig, Config, DataConfig, ModelConfig
from tokconv.encoding.console import encode_and_print
from tokconv.encoding.images import open_source
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.encoding.plan import describe_plan
from tokconv.encoding.sources.folder import FolderSource
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import DataError, StoreError
from tokconv.store.contents import copies_across
from tokconv.store.format import INDEX, shard_name
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import data_size

NUM_IMAGES = 11


@pytest.fixture(scope="module")
def tower_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "tiny")


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_photos(tmp_path / "photos", NUM_IMAGES)


@pytest.fixture
def config(photos: Path, tower_dir: Path, tmp_path: Path) -> Config:
    data = DataConfig(
        source="folder", root=str(photos), store=str(tmp_path / "store"), encode_batch_size=3, num_workers=0
    )
    return Config(model=ModelConfig(clip=ClipConfig(model_name=str(tower_dir))), data=data)


def test_the_store_holds_the_tokens_of_the_tower(config: Config) -> None:
    seen: list[EncodeProgress] = []
    store = encode(config, device="cpu", progress=seen.append)
    source = open_source(config.data)
    assert store.keys == tuple(item.key for item in source.items)
    assert store.class_names == ("cat", "dog")
    assert store.labels is not None
    assert store.labels.tolist() == [item.label for item in source.items]
    tower = VisionTower(config.model.clip, "cpu")
    wanted = tower.encode(tower.preprocess([source.load(index) for index in range(NUM_IMAGES)]))
    torch.testing.assert_close(store.tokens(torch.arange(NUM_IMAGES)), wanted, atol=4e-3, rtol=2e-3)
    assert len(store.train_indices) >= 1 <= len(store.val_indices)
    assert [(step.done, step.total) for step in seen] == [(n, NUM_IMAGES) for n in (3, 4, 7, 8, 11)]


def test_a_complete_store_needs_no_weights(config: Config) -> None:
    job = open_job(config)
    assert (job.settings.num_items, job.settings.num_tokens, job.settings.num_shards) == (NUM_IMAGES, 16, 3)
    assert not job.is_complete()
    assert f"16 tokens, {data_size(NUM_IMAGES * 16 * 32 * 2)} in 3 shards (not yet encoded)" in describe_plan(
        config, device=torch.device("cpu"), images_per_second=1
    )
    assert not job.path.exists()
    store = encode(config, device="cpu")
    with mock.patch.object(tokconv.encoding.shards, "VisionTower", side_effect=AssertionError):
        assert open_job(config).is_complete()
        assert encode(config).fingerprint == store.fingerprint


def test_workers_write_the_same_store(config: Config, tmp_path: Path) -> None:
    expected = encode(config, device="cpu")
    config.data.num_workers, config.data.store = 1, str(tmp_path / "other")
    assert encode(config, device="cpu").fingerprint == expected.fingerprint


@pytest.mark.parametrize("views", [1, 2])
def test_a_held_out_copy_of_a_training_image_is_noted(
    config: Config, tmp_path: Path, views: int, capsys: pytest.CaptureFixture[str]
) -> None:
    train, val = write_photos(tmp_path / "split" / "train", 6), write_photos(tmp_path / "split" / "val", 3)
    config.data.root, config.data.views = str(tmp_path / "split"), views
    store = encode_and_print(config, device="cpu")
    assert copies_across(store) == []
    assert "note:" not in capsys.readouterr().out
    shutil.copy(train / "cat" / "03.png", val / "cat" / "copy.png")
    config.data.store = str(tmp_path / "other")
    store = encode_and_print(config, device="cpu")
    [(held_out, trained)] = copies_across(store)
    assert (store.keys[held_out], store.keys[trained].partition("#")[0]) == ("val/cat/copy.png", "train/cat/03.png")
    assert "note: 1 of 4 held-out images are also among those to train on" in capsys.readouterr().out


class Stop(BaseException):
    pass


def test_a_killed_reader_is_one_sentence(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(source: FolderSource, index: int) -> Image.Image:
        assert get_worker_info() is not None
        os.kill(os.getpid(), signal.SIGKILL)
        raise AssertionError(index)

    config.data.num_workers = 1
    with monkeypatch.context() as patched:
        patched.setattr(FolderSource, "load", killed)
        with pytest.raises(DataError, match=r"data.num_workers: a process that reads images was killed .*same command"):
            encode(config, device="cpu")
    assert encode(config, device="cpu").num_images == NUM_IMAGES


def test_an_interrupted_encode_resumes_to_the_same_store(config: Config, tmp_path: Path) -> None:
    def interrupt(step: EncodeProgress) -> None:
        if step.done == 7:
            raise Stop

    with pytest.raises(Stop):
        encode(config, device="cpu", progress=interrupt)
    root = Path(str(config.data.store))
    finished = root / shard_name(0)
    before = finished.stat()
    with pytest.raises(StoreError, match="to resume"):
        TokenStore.open(root)
    seen: list[EncodeProgress] = []
    resumed = encode(config, device="cpu", progress=seen.append)
    assert seen[0].done == 7
    assert (finished.stat().st_mtime_ns, finished.stat().st_ino) == (before.st_mtime_ns, before.st_ino)
    config.data.store = str(tmp_path / "whole")
    encode(config, device="cpu")
    assert (root / INDEX).read_bytes() == (tmp_path / "whole" / INDEX).read_bytes()
    (root / INDEX).unlink()
    config.data.store = str(root)
    with mock.patch.object(tokconv.encoding.shards, "VisionTower", side_effect=AssertionError):
        assert encode(config).fingerprint == resumed.fingerprint


def test_damaged_images_are_skipped_counted_and_listed(config: Config, photos: Path) -> None:
    files = sorted(photos.rglob("*.png"))
    files[0].write_bytes(b"")
    files[6].write_bytes(files[6].read_bytes()[:100])
    seen: list[EncodeProgress] = []
    store = encode(config, device="cpu", progress=seen.append)
    assert store.num_images == NUM_IMAGES - 2
    assert [image.item for image in store.skipped] == [0, 6]
    assert store.skipped[0].reason == "UnidentifiedImageError: no image that Pillow can read"
    assert (seen[-1].done, seen[-1].skipped) == (NUM_IMAGES, 2)
    assert files[6].relative_to(photos).as_posix() not in store.keys
    assert store.tokens(torch.arange(store.num_images)).isfinite().all()


def test_a_shard_may_hold_damaged_images_only(config: Config, photos: Path) -> None:
    for file in sorted(photos.rglob("*.png"))[:4]:
        file.write_bytes(b"")
    store = encode(config, device="cpu")
    assert store.num_images == NUM_IMAGES - 4
    assert torch.equal(store.tokens(torch.tensor([0])), store.tokens(torch.tensor([2, 0]))[1:])


def test_a_source_without_readable_images_is_refused(config: Config, photos: Path) -> None:
    for file in photos.rglob("*.png"):
        file.write_bytes(b"")
    with pytest.raises(DataError, match="none of 11 images could be read"):
        encode(config, device="cpu")


def test_another_encoder_is_refused(config: Config, tmp_path: Path) -> None:
    encode(config, device="cpu")
    config.model.clip.model_name = str(write_tower(tmp_path / "tiny", seed=1))
    for action in (lambda config: open_job(config).is_complete(), encode):
        with pytest.raises(StoreError, match=r"encoder\.revision: stored .* wanted .*choose another data\.store"):
            action(config)
    config.data.store = None
    assert open_job(config).path.parts[:2] == ("runs", "stores")
    assert open_job(config).path.name.startswith("folder-tiny-")


@pytest.mark.parametrize("dtype", ["bfloat16", "int8"])
def test_other_dtypes_are_stored_and_checked(config: Config, dtype: str) -> None:
    config.data.dtype = dtype
    store = encode(config, device="cpu")
    assert store.settings.dtype == dtype
    config.data.dtype = "float16"
    with pytest.raises(StoreError, match=f"dtype: stored '{dtype}', wanted 'float16'"):
        encode(config, device="cpu")


def encode_in_child(config: Config, queue: multiprocessing.Queue[str]) -> None:
    tokconv.store.format.MAX_SHARD_IMAGES = 4
    queue.put(encode(config, device="cpu").fingerprint)


def test_two_processes_encode_one_store_once(config: Config) -> None:
    # A daemonic process cannot have children, whatever data.num_workers is.
    config.data.num_workers = 1
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    child = context.Process(target=encode_in_child, args=(config, queue), daemon=True)
    child.start()
    mine = encode(config, device="cpu").fingerprint
    assert queue.get(timeout=60) == mine
    child.join()


def test_encoding_works_outside_the_main_thread(config: Config) -> None:
    config.data.num_workers = 1
    found: list[str] = []
    thread = threading.Thread(target=lambda: found.append(encode(config, device="cpu").fingerprint))
    thread.start()
    thread.join(timeout=60)
    assert len(found) == 1


def test_moved_images_and_a_moved_tower_keep_the_store(
    config: Config, tower_dir: Path, photos: Path, tmp_path: Path
) -> None:
    store = encode(config, device="cpu")
    config.data.root = str(photos.rename(tmp_path / "moved"))
    config.model.clip.model_name = str(shutil.copytree(tower_dir, tmp_path / "models" / tower_dir.name))
    with mock.patch.object(tokconv.encoding.shards, "VisionTower", side_effect=AssertionError):
        assert encode(config).fingerprint == store.fingerprint

"""Several views of each training image: the same in every order, on one side of the split, none of held-out ones."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image, ImageOps
from support.photos import write_photos
from support.towers import write_tower

from tokconv.config.keys import to_dict
from tokconv.config.overrides import compose, from_dict
from tokconv.config.tree import Config, DataConfig
from tokconv.encoding.downsampled import add_downsampled
from tokconv.encoding.images import assign_split, open_source
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.encoding.plan import describe_plan
from tokconv.encoding.pool import ShardWorker
from tokconv.encoding.sources.views import AREA, draw_view
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import ConfigError, DataError
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.store.downsampled import DownsampledTokens
from tokconv.store.format import INDEX, SETTINGS
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter

NUM_IMAGES, VIEWS = 12, 3


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    photos, tower = write_photos(tmp_path / "photos", NUM_IMAGES), write_tower(tmp_path / "tower")
    return compose(
        [
            *("data=folder", f"data.root={photos}", f"data.store={tmp_path / 'store'}", "data.val_fraction=0.3"),
            *(f"data.views={VIEWS}", f"model.clip.model_name={tower}", "data.encode_batch_size=3"),
            "data.num_workers=0",
        ]
    )


def plain(config: Config) -> Config:
    return from_dict({**to_dict(config), "data": {**to_dict(config)["data"], "views": 1, "store": None}})


def images_of(store: TokenStore, indices: torch.Tensor) -> list[str]:
    return [store.keys[index].partition("#")[0] for index in indices.tolist()]


def test_views_are_of_training_images_alone_and_the_split_is_that_of_the_images(config: Config) -> None:
    store, items = encode(config, device="cpu"), open_source(plain(config).data).items
    splits = dict(zip((item.key for item in items), assign_split(items, 0.3), strict=True))
    train, held_out = images_of(store, store.train_indices), images_of(store, store.val_indices)
    assert {*train} == {key for key, split in splits.items() if split == "train"}
    assert held_out == [key for key, split in splits.items() if split == "val"]
    assert [train.count(key) for key in train] == [VIEWS] * len(train)
    assert f"{len(train)} for training ({VIEWS} views of each) and {len(held_out)} held out" in store.summary
    assert store.labels is not None
    labels = {item.key: item.label for item in items}
    assert store.labels.tolist() == [labels[key] for key in images_of(store, torch.arange(store.num_images))]


def test_view_0_is_the_image_and_the_others_are_what_the_tower_makes_of_the_drawn_views(config: Config) -> None:
    store, source = encode(config, device="cpu"), open_source(config.data)
    tower = VisionTower(config.model.clip, "cpu")
    whole = {item.key: index for index, item in enumerate(open_source(plain(config).data).items)}
    images = [open_source(plain(config).data).load(whole[key.partition("#")[0]]) for key in store.keys]
    drawn = [
        draw_view(image, item.key.partition("#")[0], item.view) if item.view else image
        for image, item in zip(images, source.items, strict=True)
        if isinstance(image, Image.Image)
    ]
    wanted = tower.encode(tower.preprocess(drawn))
    torch.testing.assert_close(store.tokens(torch.arange(store.num_images)), wanted, atol=4e-3, rtol=2e-3)


class Stop(BaseException):
    pass


def test_a_store_is_the_same_after_an_interruption_and_from_several_encoders(config: Config, tmp_path: Path) -> None:
    def interrupt(step: EncodeProgress) -> None:
        if step.done >= 9:
            raise Stop

    with pytest.raises(Stop):
        encode(config, device="cpu", progress=interrupt)
    resumed = encode(config, device="cpu")
    config.data.store = str(tmp_path / "whole")
    torch.manual_seed(1)
    torch.rand(5)
    assert encode(config, device="cpu").fingerprint == resumed.fingerprint
    config.data.store = str(tmp_path / "pool")
    job = open_job(config)
    with StoreWriter(job.path, job.settings):
        for number in reversed(range(job.settings.num_shards)):
            torch.manual_seed(number)
            assert not ShardWorker(config, job, torch.device("cpu")).report(number)["error"]
    assert encode(config, device="cpu").fingerprint == resumed.fingerprint


def test_only_several_views_are_part_of_what_a_store_is(config: Config) -> None:
    assert open_job(config).settings.source["views"] == VIEWS
    before = open_job(plain(config)).settings
    assert "views" not in before.source
    assert before.num_items == NUM_IMAGES
    earlier = to_dict(plain(config))
    del earlier["data"]["views"]
    assert open_job(from_dict(earlier)).settings.digest() == before.digest()


def test_the_downsampled_images_are_those_of_the_views(config: Config) -> None:
    store = encode(config, device="cpu")
    assert add_downsampled(store, 2, needed_images(store), device="cpu") == ""
    small = DownsampledTokens.find(store, 2)
    assert small is not None
    view = next(index for index, key in enumerate(store.keys) if "#" in key)
    alone = VisionTower(config.model.clip, "cpu")
    image = open_source(config.data).load(view)
    assert isinstance(image, Image.Image)
    pixels = torch.nn.functional.interpolate(alone.preprocess([image]), size=(8, 8), mode="bicubic", antialias=True)
    wanted = alone.encode(pixels, interpolate_positions=True)
    torch.testing.assert_close(small.tokens(torch.tensor([view])), wanted, atol=4e-3, rtol=2e-3)


def test_the_plan_counts_views(config: Config) -> None:
    num_views = open_job(config).settings.num_items
    text = describe_plan(config, device=torch.device("cpu"), images_per_second=1)
    assert f"{NUM_IMAGES} images, {num_views} with the views of those to train on," in text
    text = describe_plan(config, device=torch.device("cpu"), images_per_second=1, images=10 * NUM_IMAGES)
    assert f"as if there were {10 * NUM_IMAGES} images, {10 * num_views} with the views" in text


def test_no_training_image_moves_to_the_other_side_if_no_held_out_one_can_be_read(config: Config) -> None:
    for item in open_source(config.data).items:
        if item.split == "val":
            (Path(str(config.data.root)) / item.key).write_bytes(b"")
    with pytest.raises(DataError, match=r"data\.views: none of the held-out images can be read"):
        encode(config, device="cpu")
    assert (Path(str(config.data.store)) / SETTINGS).exists()
    assert not (Path(str(config.data.store)) / INDEX).exists()


def test_tokens_have_one_view() -> None:
    with pytest.raises(ConfigError, match=r"data\.views: got 2; tokens cannot be cropped"):
        compose(["data=features", "data.root=x.npy", "model.clip.model_name=x", "data.views=2"])
    with pytest.raises(ConfigError, match=r"data\.views: got 0"):
        compose(["data.views=0"])


@pytest.mark.parametrize("data", [DataConfig(source="digits", subset=20), DataConfig(source="photographs")])
def test_other_sources_have_views_too(data: DataConfig) -> None:
    whole = open_source(data)
    data.views = 2
    source = open_source(data)
    train = [item for item in whole.items if item.split == "train"]
    assert len(source.items) == len(whole.items) + len(train)
    assert isinstance(source.load(1), Image.Image)


@pytest.mark.parametrize("size", [(640, 427), (300, 1200), (8, 8), (1, 1)])
def test_a_view_is_a_part_of_the_image_or_of_its_mirror_image(size: tuple[int, int]) -> None:
    image = Image.effect_noise(size, 80).convert("RGB")
    views = [draw_view(image, "key", view) for view in range(1, 9)]
    assert [view.tobytes() for view in views] == [draw_view(image, "key", n).tobytes() for n in range(1, 9)]
    for view in views:
        assert any(contains(whole, view) for whole in (image, ImageOps.mirror(image)))
        share = view.width * view.height / (size[0] * size[1])
        # Only where no crop of this aspect fits, the largest one is taken.
        assert share >= AREA[0] - 0.02 or size == (300, 1200)
    if size == (640, 427):
        assert len({view.tobytes() for view in views}) == len(views)
        assert draw_view(image, "other", 1).tobytes() != views[0].tobytes()


def contains(whole: Image.Image, part: Image.Image) -> bool:
    """Return whether a crop of `whole` has these pixels, found by its first row."""
    row, size = part.crop((0, 0, part.width, 1)).tobytes(), part.size
    for top in range(whole.height - size[1] + 1):
        found = whole.crop((0, top, whole.width, top + 1)).tobytes().find(row)
        if (
            found >= 0
            and whole.crop((found // 3, top, found // 3 + size[0], top + size[1])).tobytes() == part.tobytes()
        ):
            return True
    return False

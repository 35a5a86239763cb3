"""An image that could not be read once is tried again; what was trained without it keeps what it was trained on."""

from __future__ import annotations

import re
from pathlib import Path
from unittest import mock

import pytest
import torch
from support.photos import write_photos
from support.towers import write_tower

from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.config.tree import Config
from tokconv.encoding.existing import resumed_store
from tokconv.encoding.images import open_source
from tokconv.encoding.pipeline import EncodeProgress, encode
from tokconv.errors import StoreError, SweepError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.store.reader import TokenStore
from tokconv.store.remote import place_of
from tokconv.sweep.record.checks import check_same_store, trained_on
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.system.storage import CACHE

NUM_IMAGES = 11
SMALL = "training.epochs=2 loss.weights.wgan=0 model.compressor.hidden_dim=8 model.autoencoder.hidden_dim=8"


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("tokconv.store.format.MAX_SHARD_IMAGES", 4)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def arguments() -> list[str]:
    """A folder with a truncated copy, a link that leads nowhere, and a damaged image."""
    tower, photos = write_tower(Path("tower")), write_photos(Path("photos"), NUM_IMAGES)
    truncated, dangling, damaged = (sorted(photos.rglob("*.png"))[number] for number in (0, 6, 10))
    Path("whole").mkdir()
    for path in (truncated, dangling):
        path.rename(Path("whole") / path.name)
    truncated.write_bytes((Path("whole") / truncated.name).read_bytes()[:200])
    dangling.symlink_to(Path("nowhere").absolute() / dangling.name)
    damaged.write_bytes(b"no image")
    data = "data=folder data.root=photos data.store=store data.num_workers=0 data.encode_batch_size=3"
    return [*data.split(), f"model.clip.model_name=./{tower}", "model.compressor.output_grid_size=2"]


def repair() -> None:
    """Finish the copy, and put something where the link leads."""
    Path("whole").rename("nowhere")
    for path in Path("photos").rglob("*.png"):
        if path.stat().st_size == 200:
            path.write_bytes((Path("nowhere") / path.name).read_bytes())


def tokens(store: TokenStore) -> dict[str, torch.Tensor]:
    return dict(zip(store.keys, store.tokens(torch.arange(store.num_images)), strict=True))


def sides(store: TokenStore) -> dict[str, bool]:
    val = set(store.val_indices.tolist())
    return {key: place in val for place, key in enumerate(store.keys)}


@pytest.fixture
def config(arguments: list[str]) -> Config:
    return compose(arguments)


def test_repaired_images_are_added_and_the_others_stay(config: Config) -> None:
    before = encode(config, device="cpu")
    assert [image.item for image in before.skipped] == [0, 6, 10]
    assert encode(config, device="cpu").fingerprint == before.fingerprint
    figures = baseline_figures(before, 2)
    repair()
    assert encode(config, device="cpu", retry_skipped=False).fingerprint == before.fingerprint
    after = encode(config, device="cpu")
    assert [image.item for image in after.skipped] == [10]
    assert after.keys == tuple(item.key for item in open_source(config.data).items if item.key != after_missing(config))
    assert after.num_images == before.num_images + 2
    old, new = tokens(before), tokens(after)
    assert all(torch.equal(new[key], old[key]) for key in old)
    assert sides(before).items() <= sides(after).items()
    assert after.labels is not None
    assert after.labels.tolist() == [after.class_names.index(key.split("/")[0]) for key in after.keys]
    assert encode(config, device="cpu").fingerprint == after.fingerprint
    assert TokenStore.open("store", verify=True).fingerprint == after.fingerprint
    # The version before is whole, with what was computed from it.
    again = place_of(before).open()
    assert again.fingerprint == before.fingerprint
    assert tokens(again).keys() == old.keys()
    assert baseline_figures(again, 2) == figures
    assert baseline_figures(after, 2) != figures


def after_missing(config: Config) -> str:
    return open_source(config.data).items[10].key


def test_the_added_images_have_the_tokens_of_a_new_store(config: Config) -> None:
    encode(config, device="cpu")
    repair()
    added = tokens(encode(config, device="cpu"))
    config.data.store = "new"
    new = tokens(encode(config, device="cpu"))
    assert added.keys() == new.keys()
    for key, value in new.items():
        torch.testing.assert_close(added[key], value, atol=4e-3, rtol=2e-3)


def test_several_repairs_make_several_versions(config: Config) -> None:
    versions = [encode(config, device="cpu")]
    repair()
    versions.append(encode(config, device="cpu"))
    damaged = Path("photos") / after_missing(config)
    damaged.write_bytes(next(Path("photos/cat").iterdir()).read_bytes())
    versions.append(encode(config, device="cpu"))
    assert [store.num_images for store in versions] == [8, 10, 11]
    for store in versions:
        found = TokenStore.with_fingerprint(Path(), store.fingerprint)
        assert found is not None
        assert found.keys == store.keys


def test_an_interrupted_encode_tries_them_again(config: Config) -> None:
    class Stop(BaseException):
        pass

    def interrupt(step: EncodeProgress) -> None:
        if step.done == 11:
            raise Stop

    with pytest.raises(Stop):
        encode(config, device="cpu", progress=interrupt)
    repair()
    resumed = encode(config, device="cpu")
    assert [image.item for image in resumed.skipped] == [10]
    assert resumed.version == 0
    config.data.store = "new"
    assert encode(config, device="cpu").fingerprint == resumed.fingerprint


def test_a_store_at_a_url_gets_the_images_and_keeps_its_versions(
    config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(CACHE, str(tmp_path / "one"))
    config.data.store = f"file://{tmp_path}/objects/store"
    before = encode(config, device="cpu")
    repair()
    after = encode(config, device="cpu")
    assert (before.num_images, after.num_images) == (8, 10)
    assert after.path != before.path
    for node in ("one", "another"):
        monkeypatch.setenv(CACHE, str(tmp_path / node))
        assert [tokens(place_of(store).open()).keys() for store in (before, after)] == [
            tokens(before).keys(),
            tokens(after).keys(),
        ]
        assert encode(config, device="cpu").fingerprint == after.fingerprint
        found = resumed_store(config, before.fingerprint)
        assert found is not None
        assert found.fingerprint == before.fingerprint
    image = next(path for path in Path("photos").rglob("*.png") if path.stat().st_size > 10)
    image.write_bytes((Path("nowhere") / next(Path("nowhere").iterdir()).name).read_bytes())
    with pytest.raises(StoreError, match=r"objects/store was encoded from another .*1 \(.*\) of 10 images changed"):
        encode(config, device="cpu")
    config.data.store = None
    stores = f"file://{tmp_path}/objects/stores"
    first = encode(config, device="cpu", stores=stores)
    image.write_bytes(image.read_bytes() + b"more")
    second = encode(config, device="cpu", stores=stores)
    assert (str(second.origin), second.num_images) == (f"{first.origin}-2", first.num_images)
    found = resumed_store(config, first.fingerprint, stores)
    assert found is not None
    assert found.origin == first.origin


def test_a_run_resumes_on_the_version_that_it_was_trained_on(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["train", *arguments, *SMALL.split(), "training.batch_size=4"]
    with mock.patch("tokconv.cli.train._epoch_row", side_effect=KeyboardInterrupt):
        assert main(train) == 130
    said = capsys.readouterr().out
    assert re.search(r"\(8 images, .*, 3 more could not be read; ", said)
    assert "tokconv encode tries them again" in said
    repair()
    assert main(["encode", *arguments]) == 0
    said = capsys.readouterr().out
    assert "added to the store: 2" in said
    assert re.search(
        r"\(10 images, .*, 1 more could not be read.*\n +1 images could not be read:\n +\S+: Unidentified", said
    )
    assert main(["train", "--resume"]) == 0
    assert "(8 images" in capsys.readouterr().out
    assert main(["export", "runs/train/train-001", "--out", "mine"]) == 0
    assert main(["evaluate", "mine", "store"]) == 0


def test_a_sweep_does_not_mix_stores(config: Config) -> None:
    before = encode(config, device="cpu")
    repair()
    after = encode(config, device="cpu")
    directory = SweepDirectory(Path("sweep"))
    record = Record(directory.events)
    record.append("sweep_started", store_fingerprint=before.fingerprint)
    record.close()
    found = resumed_store(config, trained_on(directory))
    assert found is not None
    check_same_store(directory, found)
    with pytest.raises(SweepError, match="trained on other tokens"):
        check_same_store(directory, after)
    with pytest.raises(StoreError, match="holds another store than before"):
        TokenStore.open("store", fingerprint="0" * 64)

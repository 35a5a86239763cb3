"""Downsampled images: the tower's tokens of smaller images, encoded once beside a store, and the baseline of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.stores import write_store
from support.towers import write_tower
from torch import Tensor
from transformers import CLIPVisionModel

from tokconv.config.overrides import compose, with_values
from tokconv.config.tree import Config
from tokconv.encoding import downsampled
from tokconv.encoding.downsampled import add_downsampled
from tokconv.encoding.pipeline import encode
from tokconv.encoding.sources.bundled import DigitsSource
from tokconv.encoding.stored_images import RECORD, remember_config
from tokconv.encoding.towers.tower import VisionTower
from tokconv.errors import StoreError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.baselines.codecs import available, baseline_codec
from tokconv.evaluation.baselines.downsampled import needed_images
from tokconv.evaluation.codecs import run_codec
from tokconv.models.windows import Windows
from tokconv.store.downsampled import DownsampledTokens, downsampled_dir
from tokconv.store.reader import TokenStore
from tokconv.system.files import write_json
from tokconv.training import baselines
from tokconv.training.baselines import measure_baselines

IMAGES = 40


@pytest.fixture(scope="module")
def tower(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tower(tmp_path_factory.mktemp("towers") / "tiny", image_size=24, patch_size=4, dim=16)


@pytest.fixture(scope="module")
def config(tower: Path) -> Config:
    return compose(["data=digits", f"data.subset={IMAGES}", f"model.clip.model_name={tower}", "data.num_workers=0"])


@pytest.fixture
def store(config: Config, tmp_path: Path) -> TokenStore:
    return encode(config, device="cpu", stores=tmp_path / "stores")


def _small(store: TokenStore, grid: int) -> DownsampledTokens:
    assert add_downsampled(store, grid, needed_images(store), device="cpu") == ""
    found = DownsampledTokens.find(store, grid)
    assert found is not None
    return found


@pytest.mark.parametrize("grid", [1, 3, 4])
def test_they_are_what_transformers_makes_of_the_smaller_image(
    store: TokenStore, config: Config, tower: Path, grid: int
) -> None:
    source, chosen = DigitsSource(), torch.tensor([3, 17])
    items = {item.key: number for number, item in enumerate(source.items)}
    images = [source.load(items[store.keys[image]]) for image in chosen.tolist()]
    pixels = VisionTower(config.model.clip, "cpu").preprocess(images)
    small = F.interpolate(pixels, size=(4 * grid, 4 * grid), mode="bicubic", antialias=True)
    model = CLIPVisionModel.from_pretrained(tower)
    with torch.no_grad():
        states = model(small, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
    assert torch.allclose(_small(store, grid).tokens(chosen), states[-2][:, 1:], atol=5e-3)


def test_at_the_tokens_own_grid_they_are_the_tokens(store: TokenStore) -> None:
    images = needed_images(store)
    assert torch.allclose(_small(store, 6).tokens(images), store.tokens(images), atol=5e-3)


def test_they_are_encoded_once_and_resumed(store: TokenStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _small(store, 3).tokens(needed_images(store)).clone()
    path = downsampled_dir(store, 3)
    monkeypatch.setattr(downsampled, "_SmallImageEncoder", lambda *_: pytest.fail("encoded again"))
    (path / "index.json").unlink()
    assert torch.equal(_small(store, 3).tokens(needed_images(store)), first)


def test_they_are_encoded_from_any_folder(
    config: Config, tower: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tower.parent)
    named = with_values(config, {"model.clip.model_name": f"./{tower.name}"})
    store = encode(named, device="cpu", stores=tmp_path / "stores")
    monkeypatch.chdir(tmp_path)
    assert add_downsampled(store, 3, needed_images(store), device="cpu") == ""


def test_the_decoder_is_the_best_affine_one(store: TokenStore) -> None:
    small, windows, images = _small(store, 4), Windows(6, 4), store.train_indices
    tokens = store.standardise(store.tokens(images))
    cells = store.standardise(small.tokens(images)).flatten(0, 1).double()
    x = torch.cat([cells, torch.ones(len(cells), 1)], 1)
    y = windows.split(tokens).flatten(2).flatten(0, 1).double()
    best = windows.join((x @ torch.linalg.lstsq(x, y).solution).unflatten(0, (len(images), -1)).unflatten(2, (-1, 16)))
    _, reconstructed = run_codec(baseline_codec(store, 4, "downsampled"), store.tokens(images), images)
    assert torch.allclose(store.standardise(reconstructed).double(), best, atol=2e-2)


def test_a_codec_reads_images_in_any_order_and_batch(store: TokenStore) -> None:
    small, images = _small(store, 3), torch.tensor([21, 4, 30])
    codec = baseline_codec(store, 3, "downsampled")
    cells, reconstructed = run_codec(codec, store.tokens(images), images)
    assert torch.allclose(cells, small.tokens(images), atol=1e-4)
    alone = run_codec(codec, store.tokens(images[1:2]), images[1:2])
    assert torch.allclose(alone[1][0], reconstructed[1], atol=1e-4)


def test_figures_include_them_once_they_are_encoded(store: TokenStore) -> None:
    with pytest.raises(StoreError, match="were not encoded at 3x3"):
        baseline_figures(store, 3, ["downsampled"])
    before = [entry.name for entry in available(store, 3)]
    _small(store, 3)
    assert {entry.name for entry in available(store, 3)} == {"downsampled", *before}
    rows = baseline_figures(store, 3, ["downsampled", "uniform"])
    assert rows["downsampled"].keys() == rows["uniform"].keys()


def _refusal(store: TokenStore, images: Tensor | None = None) -> str:
    return add_downsampled(store, 3, needed_images(store) if images is None else images, device="cpu")


def test_a_sentence_says_why_there_are_none(
    store: TokenStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    record = (store.derived_dir / RECORD).read_text()
    (store.derived_dir / RECORD).write_text(record.replace('"digits"', '"photographs"'))
    assert "are no longer there as they were" in _refusal(store)
    (store.derived_dir / RECORD).write_text("{")
    assert "unreadable" in _refusal(store)
    (store.derived_dir / RECORD).write_text(record)
    with monkeypatch.context() as patch:
        patch.setattr(DigitsSource, "load", lambda *_: 1 / 0)
        assert "can no longer be read" in _refusal(store)
    assert _refusal(store) == ""
    synthetic = write_store(tmp_path / "synthetic")
    monkeypatch.setattr(
        baselines,
        "baseline_figures",
        lambda store, grid, names, **more: baseline_figures(store, grid, [*names][:1], **more),
    )
    rows = measure_baselines(synthetic, [2], device="cpu")[2]
    assert "downsampled" not in rows
    assert "does not say which images it was made from" in capsys.readouterr().out


def test_another_tower_and_another_store_are_refused(store: TokenStore, tmp_path: Path) -> None:
    other = write_tower(tmp_path / "other", image_size=24, patch_size=4, dim=16, seed=1)
    record = (store.derived_dir / RECORD).read_text()
    changed = compose(["data=digits", f"data.subset={IMAGES}", f"model.clip.model_name={other}"])
    remember_config(store, changed)
    assert "is no longer the tower" in _refusal(store)
    (store.derived_dir / RECORD).write_text(record)
    _small(store, 3)
    index = downsampled_dir(store, 3) / "index.json"
    text = index.read_text()
    index.write_text(text.replace(store.fingerprint, "another"))
    assert "damaged" in _refusal(store) or "another store" in _refusal(store)
    write_json(index, {})
    assert "format version" in _refusal(store)

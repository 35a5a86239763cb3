"""Ready-made tokens: shapes, files, labels and splits, the store that holds them, and what is refused."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file
from support.stores import write_store
from support.towers import write_tower
from torch import Tensor

from tokconv.cli.main import main
from tokconv.config.overrides import compose
from tokconv.config.tree import Config
from tokconv.encoding.job import open_job
from tokconv.encoding.pipeline import encode
from tokconv.encoding.sources.feature_files import Asked
from tokconv.encoding.sources.features import FeatureSource
from tokconv.errors import ConfigError, DataError, StoreError, TokconvError

NUM_IMAGES, GRID, DIM = 9, 4, 32


@pytest.fixture
def tokens() -> Tensor:
    return torch.randn(NUM_IMAGES, GRID**2, DIM, generator=torch.Generator().manual_seed(0)).half().float()


def configured(root: Path, store: Path, *overrides: str) -> Config:
    fixed = [f"data.root={root}", f"data.store={store}", "model.clip.model_name=my/encoder", "data.num_workers=0"]
    return compose(["data=features", *fixed, *overrides])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("class_token", [False, True])
def test_an_array_becomes_a_store(tokens: Tensor, tmp_path: Path, dtype: type, class_token: bool) -> None:
    given = torch.cat([torch.full((NUM_IMAGES, 1, DIM), 9.0), tokens], dim=1) if class_token else tokens
    np.save(tmp_path / "all.npy", given.numpy().astype(dtype))
    config = configured(tmp_path / "all.npy", tmp_path / "store")
    settings = open_job(config).settings
    assert (settings.num_items, settings.num_tokens) == (NUM_IMAGES, GRID**2)
    store = encode(config)
    assert torch.equal(store.tokens(torch.arange(NUM_IMAGES)), tokens)
    assert store.keys[3] == "all.npy/000003"
    assert store.labels is None
    assert store.settings.encoder["name"] == "my/encoder"
    assert encode(config).fingerprint == store.fingerprint


def test_torch_files_hold_labels_and_registers_are_left_out(
    tokens: Tensor, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = torch.cat([torch.full((NUM_IMAGES, 5, DIM), 9.0), tokens], dim=1).bfloat16().requires_grad_()
    labels = torch.arange(NUM_IMAGES) % 2
    torch.save({"tokens": given, "labels": labels, "class_names": ["cat", "dog"]}, tmp_path / "all.pt")
    store = encode(configured(tmp_path / "all.pt", tmp_path / "store", "data.dtype=bfloat16"))
    assert torch.equal(store.tokens(torch.arange(NUM_IMAGES)), tokens.bfloat16().float())
    assert store.labels is not None
    assert (store.labels.tolist(), store.class_names) == (labels.tolist(), ("cat", "dog"))
    overrides = [f"data.root={tmp_path / 'all.pt'}", "model.clip.model_name=my/encoder", "--plan"]
    assert main(["encode", "data=features", *overrides]) == 0
    assert "the first 5 tokens are left out of 21 per image" in capsys.readouterr().out


@pytest.mark.parametrize(("num_tokens", "asked", "left"), [(9, None, 9), (9, 5, 4), (12, 3, 9), (16, 0, 16)])
def test_extra_tokens_are_counted_from_the_front(num_tokens: int, asked: int | None, left: int, tmp_path: Path) -> None:
    tokens = torch.randn(2, num_tokens, 8)
    torch.save(tokens, tmp_path / "all.pt")
    source = FeatureSource(tmp_path / "all.pt", Asked(asked))
    assert torch.equal(source.load(1), tokens[1, num_tokens - left :])
    assert bool(source.notes) == (left < num_tokens)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "int8"])
def test_tokens_that_rounding_would_change_are_refused(tokens: Tensor, tmp_path: Path, dtype: str) -> None:
    torch.save(tokens + 3, tmp_path / "near.pt")
    torch.save(tokens + 30_000, tmp_path / "far.pt")
    encode(configured(tmp_path / "near.pt", tmp_path / "near", f"data.dtype={dtype}"))
    with pytest.raises(StoreError, match=rf"rounding to {dtype} costs \d+% of the tokens' variance"):
        encode(configured(tmp_path / "far.pt", tmp_path / "far", f"data.dtype={dtype}"))


def test_a_pickle_that_holds_more_than_tensors_is_not_run(tokens: Tensor, tmp_path: Path) -> None:
    torch.save({"tokens": tokens, "more": Evil()}, tmp_path / "all.pt")
    with pytest.raises(DataError, match=r"cannot be read .*; save the tensor alone"):
        FeatureSource(tmp_path / "all.pt")
    torch.save([tokens], tmp_path / "all.pt")
    with pytest.raises(DataError, match="it holds a list"):
        FeatureSource(tmp_path / "all.pt")


def test_only_features_have_extra_tokens() -> None:
    with pytest.raises(ConfigError, match=r"data\.extra_tokens: .* does not read it, only features"):
        compose(["data=digits", "data.extra_tokens=5"])


def test_safetensors_hold_labels_and_folders_declare_the_split(tokens: Tensor, tmp_path: Path) -> None:
    labels = torch.arange(NUM_IMAGES) % 3
    for part, rows in (("train", slice(0, 6)), ("val", slice(6, None))):
        (tmp_path / "root" / part).mkdir(parents=True)
        content = {"tokens": tokens[rows].bfloat16(), "labels": labels[rows]}
        save_file(content, tmp_path / "root" / part / "some.safetensors")
    store = encode(configured(tmp_path / "root", tmp_path / "store", "data.dtype=bfloat16"))
    assert torch.equal(store.tokens(torch.arange(NUM_IMAGES)), tokens.bfloat16().float())
    assert store.labels is not None
    assert store.labels.tolist() == labels.tolist()
    assert store.class_names == ("0", "1", "2")
    assert store.val_indices.tolist() == [6, 7, 8]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.uint16, np.uint32, np.uint64, np.bool_])
def test_labels_of_any_whole_type_are_the_same_classes(tokens: Tensor, tmp_path: Path, dtype: type) -> None:
    labels = np.arange(NUM_IMAGES) % 2
    path = tmp_path / "all.safetensors"
    save_arrays({"tokens": tokens.numpy(), "labels": labels.astype(dtype)}, path)
    source = FeatureSource(path)
    assert source.class_names == ("0", "1")
    assert [item.label for item in source.items] == labels.tolist()


def test_files_of_one_image_each_with_a_subset(tokens: Tensor, tmp_path: Path) -> None:
    (tmp_path / "root" / "deep").mkdir(parents=True)
    for number, image in enumerate(tokens):
        np.save(tmp_path / "root" / "deep" / f"{number}.npy", image.numpy())
    store = encode(configured(tmp_path / "root", tmp_path / "store", "data.subset=5", "data.num_workers=1"))
    numbers = [int(Path(key).stem) for key in store.keys]
    assert len(numbers) == 5
    assert torch.equal(store.tokens(torch.arange(5)), tokens[numbers])


def test_other_values_in_the_same_file_change_the_content(tokens: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", tokens.numpy())
    first = FeatureSource(tmp_path / "all.npy").content(3)
    assert pickle.loads(pickle.dumps(FeatureSource(tmp_path / "all.npy"))).content(3) == first
    np.save(tmp_path / "all.npy", tokens.numpy() + 1)
    assert FeatureSource(tmp_path / "all.npy").content(3) != first


def test_tokens_that_are_not_finite_are_skipped_with_the_reason(tokens: Tensor, tmp_path: Path) -> None:
    tokens[4, 2, 1] = float("nan")
    np.save(tmp_path / "all.npy", tokens.numpy())
    store = encode(configured(tmp_path / "all.npy", tmp_path / "store"))
    assert [(image.item, image.reason) for image in store.skipped] == [(4, "ValueError: not every value is finite")]


class Evil:
    def __reduce__(self) -> tuple[type, tuple[str]]:
        return Path, ("loaded",)


def test_files_that_do_not_hold_tokens_are_refused(tokens: Tensor, tmp_path: Path) -> None:
    def refused(content: np.ndarray | dict[str, Tensor], says: str) -> None:
        place = tmp_path / ("x.npy" if isinstance(content, np.ndarray) else "x.safetensors")
        if isinstance(content, np.ndarray):
            np.save(place, content, allow_pickle=True)
        else:
            save_file(content, place)
        with pytest.raises(DataError, match=says):
            FeatureSource(place)
        place.unlink()

    refused(np.array([Evil()], dtype=object), "cannot be read")
    refused(tokens.numpy()[:, :15], r"shape \[9, 15, 32\]; 15 tokens make no square grid")
    refused(tokens.numpy().astype(np.int32), "no floating point")
    refused(tokens.numpy()[:0], "shape")
    refused({"tokens": tokens, "labels": torch.arange(3)}, "one per image")
    refused({"tokens": tokens, "labels": torch.arange(NUM_IMAGES) - 1}, "whole numbers from 0")
    refused({"a": tokens, "b": tokens + 1}, "cannot be read")
    with pytest.raises(DataError, match="there is no"):
        FeatureSource(tmp_path / "missing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no tokens in"):
        FeatureSource(tmp_path / "empty")
    np.save(tmp_path / "empty" / "a.npy", tokens.numpy())
    np.save(tmp_path / "empty" / "b.npy", tokens.numpy()[..., :8])
    with pytest.raises(DataError, match="from one encoder"):
        FeatureSource(tmp_path / "empty")
    (tmp_path / "empty" / "b.npy").write_bytes((tmp_path / "empty" / "a.npy").read_bytes()[:-5])
    with pytest.raises(DataError, match="cannot be read"):
        FeatureSource(tmp_path / "empty")


def test_the_encoder_must_be_named() -> None:
    with pytest.raises(ConfigError, match="name the encoder that made the tokens"):
        compose(["data=features", "data.root=x.npy"])
    with pytest.raises(ConfigError, match="needs a file of tokens"):
        compose(["data=features", "model.clip.model_name=my/encoder"])


def test_a_compressor_of_ready_made_tokens_is_used_with_their_tower(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Train, export, then compress an image with the tower, which is found by its name alone."""
    monkeypatch.chdir(tmp_path)
    tower = write_tower(tmp_path / "tower")
    given = write_store(tmp_path / "made", token_grid=GRID, dim=DIM, num_images=20, num_classes=0)
    np.save("mine.npy", given.tokens(torch.arange(20)).numpy())
    small = ["model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8", "model.critic.hidden_dim=8"]
    named = [f"model.clip.model_name={tower}", "model.compressor.output_grid_size=2", "training.epochs=1"]
    assert main(["train", "data=features", "data.root=mine.npy", *named, *small, "training.batch_size=8"]) == 0
    assert main(["export", "runs/train/train-001", "--out", "mine"]) == 0
    assert f"hidden layer {-2}" in Path("mine/README.md").read_text()
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save("cat.png")
    assert main(["compress", "cat.png", "--compressor", "mine", "--out", "tokens.safetensors"]) == 0
    other = write_tower(tmp_path / "other")
    refused = main(["compress", "cat.png", "--compressor", "mine", "--encoder", str(other), "--out", "t.safetensors"])
    assert refused == 2
    assert "was trained on tokens of" in capsys.readouterr().err


def test_a_file_that_disappears_is_reported(tokens: Tensor, tmp_path: Path) -> None:
    np.save(tmp_path / "all.npy", tokens.numpy())
    source = FeatureSource(tmp_path / "all.npy")
    (tmp_path / "all.npy").unlink()
    with pytest.raises(TokconvError, match="cannot be read any more"):
        source.load(0)

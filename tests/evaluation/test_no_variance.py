"""Tokens with little or no variance: one sentence where nothing can be compressed, finite figures everywhere else."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tokconv.cli.main import main
from tokconv.errors import StoreError
from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.evaluator import Evaluator, add_gain
from tokconv.store.format import StoreSettings, pack
from tokconv.store.reader import TokenStore
from tokconv.store.writer import StoreWriter

IMAGES, GRID, DIM = 20, 4, 8
NOISE = torch.randn(IMAGES, GRID**2, DIM, generator=torch.Generator().manual_seed(0))


def write(path: Path, tokens: Tensor, labels: list[int] | None = None, dtype: str = "float16") -> TokenStore:
    """Write a store whose every fourth image is held out."""
    settings = StoreSettings(
        encoder={},
        source={},
        num_items=len(tokens),
        token_grid=GRID,
        dim=DIM,
        dtype=dtype,
        shard_size=len(tokens),
        class_names=() if labels is None else ("a", "b"),
    )
    with StoreWriter(path, settings) as writer:
        writer.write_shard(0, pack(tokens, dtype), range(len(tokens)), labels)
        splits = ["val" if i % 4 == 0 else "train" for i in range(len(tokens))]
        writer.finish([f"{i:02d}" for i in range(len(tokens))], splits)
    return TokenStore.open(path)


@pytest.mark.parametrize("dtype", ["float16", "int8"])
@pytest.mark.parametrize(
    ("tokens", "what"),
    [
        (torch.zeros_like(NOISE), "tokens"),
        (torch.full_like(NOISE, 3.7), "tokens"),
        (NOISE[0, 0].expand_as(NOISE), "tokens"),
        (NOISE[0].expand_as(NOISE), "images"),
    ],
    ids=["zero", "constant", "one token", "one image"],
)
def test_a_store_without_variance_is_refused(tokens: Tensor, what: str, dtype: str, tmp_path: Path) -> None:
    store = write(tmp_path / "store", tokens, dtype=dtype)
    with pytest.raises(StoreError, match=f"all {what} of its training split are equal"):
        baseline_figures(store, 2)


def test_values_that_the_dtype_rounds_away_are_no_variance(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="stored in float16"):
        baseline_figures(write(tmp_path / "store", 1000 + 0.01 * NOISE), 2)


def test_held_out_tokens_without_variance_are_refused(tmp_path: Path) -> None:
    tokens = NOISE.half().float().clone()
    tokens[1::4], tokens[2::4], tokens[::4], tokens[3::4] = tokens[1::4], -tokens[1::4], 0, 0
    with pytest.raises(StoreError, match="every held-out token is the mean token"):
        baseline_figures(write(tmp_path / "store", tokens), 2)


@pytest.mark.parametrize(
    "tokens",
    [
        NOISE[..., :1] * NOISE[0, 0],
        NOISE * (torch.arange(DIM) == 2),
        NOISE[:, :1].expand_as(NOISE),
        NOISE * (torch.arange(IMAGES) == 1)[:, None, None] + NOISE * (torch.arange(IMAGES) == 4)[:, None, None],
        1e-4 * NOISE,
    ],
    ids=["rank 1", "one channel", "equal tokens in each image", "most images are zero", "small"],
)
def test_tokens_of_low_rank_have_finite_figures(tokens: Tensor, tmp_path: Path) -> None:
    store = write(tmp_path / "store", tokens, labels=[i % 2 for i in range(IMAGES)])
    rows = baseline_figures(store, 2)
    assert all(math.isfinite(value) for figures in rows.values() for value in figures.values())
    assert abs(rows["window_pca"]["val/gain"]) <= 1


def test_one_labelled_image_is_a_probe_that_always_answers_it(tmp_path: Path) -> None:
    labels = [1 if i in (1, 4, 8) else -1 for i in range(IMAGES)]
    evaluator = Evaluator(write(tmp_path / "store", NOISE, labels=labels), 2)
    assert evaluator.probe_full == 1.0


def test_a_gain_over_a_lossless_baseline_is_no_quotient_of_rounding_errors() -> None:
    assert add_gain({"val/fvu": 1e-12}, {"val/fvu": 0.0})["val/gain"] == 0.0
    assert add_gain({"val/fvu": 0.02}, {"val/fvu": 0.04})["val/gain"] == 0.5


def test_train_says_so_before_it_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    np.save("z.npy", np.zeros((20, 17, 8), "f4"))
    named = ["data=features", "data.root=z.npy", "model.clip.model_name=a/b", "model.compressor.output_grid_size=2"]
    assert main(["train", *named, "data.num_workers=0"]) == 2
    error = capsys.readouterr().err
    assert "no variance to compress" in error
    assert len(error.strip().splitlines()) == 1
    assert not Path("runs/train").exists()

"""`tokconv fit` exports the closed form of a store, without training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tokconv
from tokconv.cli.main import main
from tokconv.evaluation.baselines.fitting import fitted_baselines
from tokconv.exports.artefact import read_config
from tokconv.models.windows import Windows

GRID = 5
FIT = ["fit", f"model.compressor.output_grid_size={GRID}", "data.num_workers=0", "--images", "24", "--device", "cpu"]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("fit")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        assert main([*FIT, "--out", "matched"]) == 0
        assert main([*FIT, "--out", "pooling", "model.compressor.init=pooling"]) == 0
        # An older export is replaced, and the command again makes the same one.
        assert main([*FIT, "--out", "pooling"]) == 0
        assert main([*FIT, "--out", "average", "model.compressor.init=pooling", "data.subset=24"]) == 0
    return root


@torch.inference_mode()
def test_it_is_the_closed_form_of_the_store(fitted: Path) -> None:
    (found,) = (fitted / "runs" / "stores").iterdir()
    store = tokconv.TokenStore.open(found)
    assert store.num_images == 24
    tokens = next(store.batches([torch.arange(3)])).clone()
    closed, windows = fitted_baselines(store, GRID).linear["matched_window_pca"], Windows(store.token_grid, GRID)
    compressor = tokconv.load_compressor(fitted / "matched")
    standardise = compressor.standardise
    expected = standardise.restore(closed.compress(standardise(tokens), windows))
    torch.testing.assert_close(compressor(tokens), expected)
    torch.testing.assert_close(
        tokconv.load_compressor(fitted / "average")(tokens), windows.split(tokens).mean(2), rtol=1e-4, atol=1e-5
    )
    restored = tokconv.load_decoder(fitted / "matched")(compressor(tokens))
    fvu = (restored - tokens).square().mean() / (tokens - store.mean).square().mean()
    assert float(fvu) < 0.2
    for file in ("model.safetensors", "decoder.safetensors"):
        assert (fitted / "matched" / file).read_bytes() == (fitted / "pooling" / file).read_bytes()


def test_it_says_what_it_is(fitted: Path) -> None:
    described = read_config(fitted / "matched")
    assert described["evidence"]["summary"].endswith("images, not trained")
    assert described["training"] == {"epochs": 0}
    assert described["figures"]["val/fvu"] < described["baselines"]["pooling"]["val/fvu"]


def test_a_folder_of_something_else_is_kept(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--out", str(tmp_path)]) == 2
    assert "is no exported compressor" in capsys.readouterr().err


def test_too_few_images_are_told_by_their_own_option(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*FIT, "--out", str(tmp_path / "new"), "--images", "1"]) == 2
    assert "--images: got 1; must be at least 2" in capsys.readouterr().err

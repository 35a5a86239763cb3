"""`tokconv dynamic` and `tokconv compress --target-fvu` from the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from support.champions_folders import files_of, write_champions
from support.stores import write_store

from tokconv.cli.main import main
from tokconv.exports.dynamic.compressor import load_dynamic
from tokconv.exports.dynamic.ragged import load_ragged
from tokconv.store.reader import TokenStore


@pytest.fixture(scope="module")
def digits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a store of 120 digits, champions at two grids fitted for it, and some images."""
    folder = tmp_path_factory.mktemp("digits")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["encode", "data.subset=120", "data.num_workers=0"]) == 0
        (path,) = Path("runs/stores").iterdir()
        write_champions(Path("champions"), TokenStore.open(path), (8, 12))
        assert main(["dynamic", "champions", "--device", "cpu"]) == 0
    for number in range(6):
        # Blank images are easy, noise is hard.
        noise = torch.randint(0, 256, (24, 24), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
        pixels = noise.numpy() if number % 2 else (0 * noise).numpy()
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def here(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `digits` that a test may change, as the current directory."""
    shutil.copytree(digits, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


IMAGES = [f"{number}.png" for number in range(6)]


def test_compress_by_target(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    champions = ["compress", *IMAGES, "--compressors", "champions"]
    target = _between(IMAGES)
    assert main([*champions, "--target-fvu", str(target), "--out", "t.safetensors", "--picture", "p.png"]) == 0
    text = capsys.readouterr().out
    ragged = load_ragged("t.safetensors")
    assert ragged.images == tuple(IMAGES)
    assert set(ragged.grids.tolist()) == {8, 12}
    assert all(part.shape == (int(grid) ** 2, 64) for part, grid in zip(ragged, ragged.grids, strict=True))
    assert f"{len(ragged.tokens) / 6:.1f} tokens per image on average" in text
    for grid in (8, 12):
        assert f"{grid} x {grid}: {int((ragged.grids == grid).sum())} image" in text
    with Image.open("p.png") as picture:
        assert picture.format == "PNG"
    # The batch size changes nothing, and images of one grid get what that grid's compressor gives.
    assert main([*champions, "--target-fvu", str(target), "--out", "b.safetensors", "--batch-size", "4"]) == 0
    again = load_ragged("b.safetensors")
    assert torch.equal(again.grids, ragged.grids)
    torch.testing.assert_close(again.tokens, ragged.tokens, rtol=1e-4, atol=1e-4)
    capsys.readouterr()
    assert main([*champions, "--target-fvu", "1e-9", "--out", "all.safetensors"]) == 0
    assert "6 of the 6 images are not expected to meet the target at any grid" in capsys.readouterr().out
    assert main(["compress", *IMAGES, "--compressor", "champions/grid-12", "--out", "fixed.safetensors"]) == 0
    fixed = load_file("fixed.safetensors")["tokens"]
    torch.testing.assert_close(load_ragged("all.safetensors").tokens, fixed.flatten(0, 1), rtol=1e-4, atol=1e-4)


def _between(images: list[str]) -> float:
    """A target that some of these images are predicted to meet at the smallest grid, and some are not."""
    from tokconv.config.overrides import compose
    from tokconv.encoding.towers.tower import VisionTower

    tower = VisionTower(compose([]).model.clip, torch.device("cpu"))
    tokens = tower.encode(torch.cat([tower.preprocess([Image.open(name).convert("RGB")]) for name in images]))
    dynamic = load_dynamic("champions", target_fvu=1)
    with torch.no_grad():
        bounds = dynamic.predictor.upper_of(dynamic.predictor.spectrum(tokens), 0.5)[:, 0].sort().values
    return math.sqrt(float(bounds[2] * bounds[3]))


def test_the_command_prints_and_writes_the_figures(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("champions/dynamic")
    (store,) = Path("runs/stores").iterdir()
    for command in (["dynamic", "champions"], ["dynamic", "champions", str(store)]):
        assert main(command) == 0
        text = capsys.readouterr().out
        for part in ("R2 of the log error", "rank correlation", "saving", "oracle", "--target-fvu"):
            assert part in text
        report = json.loads(Path("champions/dynamic/dynamic.json").read_text())["report"]
        assert report["grids"] == [8, 12]
        assert {"target", "tokens", "fvu", "mixed_tokens", "low", "high"} <= set(report["dynamic"][0])


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--compressors", "champions"], "--compressors: needs --target-fvu"),
        (["--compressors", "champions", "--target-fvu", "0"], "--target-fvu: got 0.0; must be a positive number"),
        (["--compressors", "champions", "--target-fvu", "nan"], "--target-fvu: got nan; must be a positive number"),
        (["--compressors", "champions", "--target-fvu", "1", "--confidence", "1"], "confidence: got 1.0"),
        (["--compressors", "nowhere", "--target-fvu", "1"], "nowhere: holds 0 exported compressors"),
        (["--compressor", "champions/grid-08", "--target-fvu", "1"], "--target-fvu: goes with --compressors"),
        (["--compressor", "champions/grid-08", "--confidence", "0.9"], "--confidence: goes with --compressors"),
    ],
)
def test_compress_refuses(here: Path, arguments: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = files_of(here)
    assert main(["compress", *IMAGES, *arguments, "--out", "x"]) == 2
    text = capsys.readouterr().err
    assert text.startswith("tokconv: ")
    assert text.count("\n") == 1
    assert expected in text
    assert files_of(here) == before


def test_the_command_refuses_a_store_of_other_compressors(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_store(here / "other", num_images=100)
    assert main(["dynamic", "champions", "other"]) == 2
    assert "were not trained on other" in capsys.readouterr().err
    shutil.rmtree("runs")
    assert main(["dynamic", "champions"]) == 2
    assert "champions: its token store is not below runs/stores; name it: tokconv" in capsys.readouterr().err


def test_one_compressor_or_a_choice_not_both(here: Path) -> None:
    for which in ([], ["--compressor", "a", "--compressors", "b"]):
        with pytest.raises(SystemExit) as left:
            main(["compress", *IMAGES, *which, "--out", "x"])
        assert left.value.code == 2

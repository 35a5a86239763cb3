"""`tokconv compress --tokens`: what it writes is what images give, and what it refuses."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from support.stores import write_store
from support.towers import write_tower
from torch import Tensor

from tokconv.cli.main import main
from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.files import open_image
from tokconv.encoding.towers.tower import VisionTower

GRID, DIM = 4, 32
TO = ["--compressor", "mine", "--out", "out.safetensors"]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a compressor of tokens of a tower, images, and their tokens."""
    home = tmp_path_factory.mktemp("home")
    tower = write_tower(home / "tower")
    given = write_store(home / "made", token_grid=GRID, dim=DIM, num_images=12, num_classes=0)
    np.save(home / "mine.npy", given.tokens(torch.arange(12)).numpy())
    small = ["model.compressor.hidden_dim=8", "model.autoencoder.hidden_dim=8", "model.critic.hidden_dim=8"]
    named = [f"model.clip.model_name={tower}", "model.compressor.output_grid_size=2", "training.epochs=1"]
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(home / f"{number}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        assert main(["train", "data=features", "data.root=mine.npy", *named, *small, "training.batch_size=8"]) == 0
        assert main(["export", "runs/train/train-001", "--out", "mine"]) == 0
        assert main(["compress", "0.png", "1.png", "2.png", "--compressor", "mine", "--out", "images.safetensors"]) == 0
    return home


@pytest.fixture
def tokens(home: Path, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    monkeypatch.chdir(home)
    tower = VisionTower(ClipConfig(model_name=str(home / "tower")), "cpu")
    return tower.encode(tower.preprocess([open_image(Path(f"{number}.png")) for number in range(3)]))


@pytest.mark.parametrize("batch", ["1", "2", "8"])
def test_unreadable_images_of_a_folder_are_skipped_and_listed(
    home: Path, tokens: Tensor, batch: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    folder, out = tmp_path / "photos", tmp_path / "out.safetensors"
    folder.mkdir()
    for name, content in (("0", b"no image"), ("1", (home / "0.png").read_bytes()), ("2", b""), ("3", b"")):
        (folder / f"{name}.png").write_bytes(content)
    shutil.copy(home / "1.png", folder / "4.png")
    command = ["compress", str(folder), "--compressor", "mine", "--out", str(out), "--batch-size", batch]
    assert main([*command, "--picture", str(tmp_path / "picture.png")]) == 0
    text = capsys.readouterr().out
    assert "3 images could not be read" in text
    assert re.findall(r"photos/(\d)\.png: ", text) == ["0", "2", "3"]
    with safe_open(out, "pt") as file:
        assert json.loads(file.metadata()["images"]) == [str(folder / name) for name in ("1.png", "4.png")]
    wanted = load_file("images.safetensors")["tokens"][:2]
    torch.testing.assert_close(load_file(out)["tokens"], wanted, rtol=1e-4, atol=1e-5)

    out.unlink()
    assert main([*command, str(folder / "0.png")]) == 2
    assert "0.png: cannot be read as an image" in capsys.readouterr().err, "one that is named is needed"
    for name in ("1.png", "4.png"):
        (folder / name).write_bytes(b"")
    assert main(command) == 2
    assert "none of 5 images can be read (the first: " in capsys.readouterr().err
    assert not out.exists()


def save(path: str, tokens: Tensor) -> str:
    if path.endswith(".npy"):
        np.save(path, tokens.numpy())
    elif path.endswith(".pt"):
        torch.save(tokens, path)
    else:
        save_file({"tokens": tokens}, path)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".safetensors", ".pt"])
@pytest.mark.parametrize("extra", [0, 1, 5])
def test_tokens_give_what_their_images_give(
    suffix: str, extra: int, tokens: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(f"given{suffix}", torch.cat([torch.full((3, extra, DIM), 9.0), tokens], dim=1))
    assert main(["compress", "--tokens", path, *TO]) == 0
    printed = capsys.readouterr().out
    assert "out.safetensors: tokens [3, 4, 32], 4x fewer" in printed
    assert ("left out" in printed) == (extra > 0)
    if extra == 5:
        assert "the first 5 tokens are left out of 21 per image (the class token and 4 register tokens)" in printed
    assert torch.equal(load_file("out.safetensors")["tokens"], load_file("images.safetensors")["tokens"])
    with safe_open("out.safetensors", "pt") as file:
        assert json.loads(file.metadata()["images"]) == [f"{path}/{number:06d}" for number in range(3)]


def test_a_picture_of_tokens_and_another_number_of_extra_tokens(
    tokens: Tensor, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    path = save("given.pt", torch.cat([tokens[:, :3], tokens], dim=1))
    extra = ["--extra-tokens", "3", "--batch-size", "2", "--picture", "picture.png"]
    assert main(["compress", "--tokens", path, *TO, *extra]) == 0
    assert "picture.png: tokens, compressed grid" in capsys.readouterr().out
    wanted = load_file("images.safetensors")["tokens"]
    torch.testing.assert_close(load_file("out.safetensors")["tokens"], wanted, rtol=1e-5, atol=1e-5)


def test_compress_refuses_tokens_and_says_why(tokens: Tensor, capsys: pytest.CaptureFixture[str]) -> None:
    def refused(arguments: list[str], says: str) -> None:
        assert main(["compress", *arguments, *TO]) == 2
        error = capsys.readouterr().err
        assert says in error, error

    path = save("good.npy", tokens)
    refused([], "needs images, or --tokens FILE")
    refused(["0.png", "--tokens", path], "stands in place of images; leave out 0.png")
    refused(["0.png", "--extra-tokens", "1"], "--extra-tokens: goes with --tokens")
    refused(["--tokens", path, "--extra-tokens=-1"], "--extra-tokens: got -1; must be at least 0")
    refused(["--tokens", path, "--encoder", "tower"], "--encoder: goes with images")
    refused(["--tokens", "none.npy"], "--tokens: none.npy: there is no such file")
    refused(["--tokens", "tower"], "--tokens: tower: is a folder")
    refused(["--tokens", "0.png"], "files ending in .npy or .safetensors or .pt")
    refused(["--tokens", save("odd.npy", tokens[:, :12])], "12 tokens make no square grid, nor do they without")
    refused(["--tokens", path, "--extra-tokens", "3"], "16 tokens less --extra-tokens=3 are 13, which make no square")
    refused(["--tokens", save("narrow.pt", tokens[..., :8])], "4 x 4 tokens of 8 channels, the compressor takes 4 x 4")
    refused(["--tokens", save("few.pt", tokens[:, :9])], "3 x 3 tokens of 32 channels")
    broken = tokens.clone()
    broken[1, 2, 3] = float("nan")
    refused(["--tokens", save("nan.npy", broken)], "--tokens: nan.npy/000001: not every value is finite")

"""An exported compressor on the command line: what compresses images with it, and what is refused in its place."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file
from support.commands import SHORT, digits, refused
from support.towers import write_tower

from tokconv.cli.main import main

pytestmark = pytest.mark.usefixtures("empty_directory")


@pytest.fixture(scope="module")
def artefact(store: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor."""
    folder = tmp_path_factory.mktemp("artefact")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(["train", "--no-mlflow", *SHORT, *digits(store)]) == 0
        assert main(["export", "runs/train/train-001", "--out", "compressor"]) == 0
    return folder / "compressor"


def test_compress_writes_tokens_and_a_picture(
    artefact: Path, images: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    whole = ["compress", *images, "--compressor", str(artefact)]
    assert main([*whole, "--out", "whole.safetensors", "--picture", "picture.png"]) == 0
    assert "tokens [5, 36, 64], 16x fewer" in capsys.readouterr().out
    assert main([*whole, "--out", "parts.safetensors", "--batch-size", "2"]) == 0
    tokens = load_file("whole.safetensors")["tokens"]
    assert tokens.shape == (5, 36, 64)
    assert torch.isfinite(tokens).all()
    torch.testing.assert_close(load_file("parts.safetensors")["tokens"], tokens, rtol=1e-4, atol=1e-4)
    with safe_open("whole.safetensors", "pt") as file:
        assert json.loads(file.metadata()["images"]) == images
    # A folder stands for the images below it.
    assert main(["compress", "images", *whole[-2:], "--out", "folder.safetensors"]) == 0
    assert torch.equal(load_file("folder.safetensors")["tokens"], tokens)
    with Image.open("picture.png") as picture:
        assert picture.format == "PNG"
        assert min(picture.size) > 300


def test_compress_refuses(capsys: pytest.CaptureFixture[str], artefact: Path, images: list[str]) -> None:
    to = ["--compressor", str(artefact), "--out", "out.safetensors"]
    refused(capsys, ["compress", "cat.jpg", *to], "cat.jpg: there is no such image")
    Path("empty").mkdir()
    refused(capsys, ["compress", "empty", *to], "empty: holds no images; give a folder of images")
    Path("empty/notes.txt").touch()
    refused(capsys, ["compress", "empty", *to], "empty: holds no images, only 1 .txt; give a folder of images")
    refused(capsys, ["compress", *images, *to[:2], "--out", "images"], "images: is a folder; name the file to write")
    refused(capsys, ["compress", *images, "--compressor", "none", "--out", "x"], "none: not an exported compressor")
    refused(capsys, ["compress", *images, *to, "--batch-size", "0"], "--batch-size: got 0; must be at least 1")
    refused(capsys, ["compress", *images, *to, "--device", "frog"], "device 'frog' is not available")
    for same in (["--out", images[0]], ["--out", "x", "--picture", "x"], ["--out", "x", "--picture", images[1]]):
        refused(capsys, ["compress", *images, *to[:2], *same], "is named twice")
    refused(capsys, ["compress", *images, *to[:2], "--out", f"{images[0]}/x"], "cannot be written or read")
    refused(capsys, ["compress", "x" * 300, *to], "cannot be written or read (File name too long)")
    Path("broken.png").write_bytes(b"no image")
    refused(capsys, ["compress", *images, "broken.png", *to], "broken.png: cannot be read as an image")
    tower = write_tower(Path("tower"), image_size=96)
    refused(capsys, ["compress", *images, *to, "--encoder", str(tower)], "was trained on tokens of")
    damaged = Path(shutil.copytree(artefact, "damaged"))
    description = json.loads((damaged / "config.json").read_text())
    for key in ("clip", "encoder"):
        rest = {name: value for name, value in description.items() if name != key}
        (damaged / "config.json").write_text(json.dumps(rest))
        refused(capsys, ["compress", *images, "--compressor", "damaged", "--out", "x"], "it describes no encoder")


def test_export_refuses(capsys: pytest.CaptureFixture[str], artefact: Path) -> None:
    Path("notes").mkdir()
    Path("notes/config.json").write_text("{}")
    refused(
        capsys,
        ["export", "notes", "--out", "x"],
        "notes: neither a checkpoint, nor a train run with one, nor an exported folder",
    )
    run = str(artefact.parent / "runs/train/train-001")
    for kept in ("notes", run):
        refused(capsys, ["export", run, "--out", kept], "exists and is no exported compressor")


def test_a_train_run_in_place_of_an_export_is_named(capsys: pytest.CaptureFixture[str], artefact: Path) -> None:
    run = str(artefact.parent / "runs/train/train-001")
    expected = f"train-001: a train run, and no exported compressor; export it first: tokconv export {run} --out FOLDER"
    refused(capsys, ["evaluate", run], expected)
    refused(capsys, ["compress", "--tokens", "x", "--compressor", run, "--out", "y"], "x: there is no such file")
    Path("x").touch()
    refused(capsys, ["compress", "--tokens", "x", "--compressor", run, "--out", "y"], expected)
    refused(capsys, ["merge", "llava", run, "--out", "y"], expected)

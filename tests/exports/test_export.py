"""An exported compressor is the trained one, bit for bit, and loads with little else."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from support.artefacts import BASELINE, write_checkpoint, write_export

import tokconv
from tokconv.errors import CheckpointError
from tokconv.evaluation.pictures import BAR, CELL, TITLE, draw_compression
from tokconv.exports.artefact import export, load_compressor, load_decoder, read_config
from tokconv.models.compressor import ResidualCompressor
from tokconv.models.decoder import ConvDecoder
from tokconv.training import checkpoint as checkpoints

SIZES = {"num_layers": 1, "hidden_dim": 8}
HEAVY = ("ray", "mlflow", "transformers", "hydra", "omegaconf", "optuna", "pandas", "matplotlib")
LOAD = """
import json, sys
import torch
torch.set_num_threads(1)
import tokconv
compressor = tokconv.load_compressor(sys.argv[1])
tokens = torch.randn(2, 16, 8, generator=torch.Generator().manual_seed(1))
with torch.no_grad():
    print(json.dumps([sorted({name.split(".")[0] for name in sys.modules}), compressor(tokens).tolist()]))
"""


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported compressor that all tests share and none changes."""
    return write_export(tmp_path_factory.mktemp("exported") / "compressor")


@pytest.fixture
def copy(artefact: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(artefact, tmp_path / "copy"))


def tokens_of(batch: int, token_grid: int = 4, dim: int = 8) -> torch.Tensor:
    return torch.randn(batch, token_grid**2, dim, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(("token_grid", "grid"), [(4, 2), (6, 5), (4, 4), (5, 1)])
def test_the_reloaded_pair_is_bit_identical(tmp_path: Path, token_grid: int, grid: int) -> None:
    path = write_checkpoint(tmp_path / "checkpoint", token_grid, 8, grid, seed=3)
    modules = {
        "compressor": ResidualCompressor(token_grid, 8, grid, **SIZES),
        "decoder": ConvDecoder(token_grid, 8, grid, **SIZES),
    }
    checkpoints.load(path).restore(modules)
    out = export(path, tmp_path / "out")
    compressor, decoder = load_compressor(out), load_decoder(str(out))
    assert not compressor.training
    assert not decoder.training
    tokens = tokens_of(3, token_grid)
    with torch.no_grad():
        compressed = modules["compressor"].eval()(tokens)
        assert compressed.shape == (3, grid**2, 8)
        assert torch.equal(compressor(tokens), compressed)
        assert torch.equal(decoder(compressed), modules["decoder"].eval()(compressed))


def test_a_fresh_interpreter_loads_it_without_the_training_stack(artefact: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LOAD, str(artefact)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=120)
    modules, compressed = json.loads(done.stdout)
    assert set(modules).isdisjoint(HEAVY)
    with torch.no_grad():
        assert load_compressor(artefact)(tokens_of(2)).tolist() == compressed


def test_an_older_artefact_and_an_empty_directory_are_replaced(tmp_path: Path, copy: Path) -> None:
    (copy / "leftover").write_text("from the older artefact")
    (tmp_path / "empty").mkdir()
    for out in (copy, tmp_path / "empty"):
        path = write_checkpoint(tmp_path / f"checkpoint-{out.name}", grid=3)
        assert export(path, out) == out
        assert read_config(out)["compressor"]["output_grid_size"] == 3
        names = {file.name for file in out.iterdir()}
        assert names == {"config.json", "model.safetensors", "decoder.safetensors", "README.md"}


@pytest.mark.parametrize("name", ["photo.jpg", "config.json"])
def test_a_directory_of_something_else_is_left_alone(tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / name).write_text('{"model_type": "clip"}')
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    for place in (out, out / name):
        with pytest.raises(CheckpointError, match="no exported compressor"):
            export(checkpoint, place)
    assert [file.name for file in out.iterdir()] == [name]


def test_a_failed_export_leaves_the_older_artefact(tmp_path: Path, copy: Path) -> None:
    checkpoint = write_checkpoint(tmp_path / "checkpoint")
    (checkpoint / "weights.safetensors").write_bytes(b"torn")
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    for source in (checkpoint, tmp_path / "none", copy):
        with pytest.raises(CheckpointError):
            export(source, copy)
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def _without(key: str) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        description = json.loads((path / "config.json").read_text())
        del description[key]
        (path / "config.json").write_text(json.dumps(description))

    return damage


def _with_grid(value: object) -> Callable[[Path], None]:
    def damage(path: Path) -> None:
        description = json.loads((path / "config.json").read_text())
        description["compressor"]["output_grid_size"] = value
        (path / "config.json").write_text(json.dumps(description))

    return damage


def _writes(name: str, data: bytes) -> Callable[[Path], object]:
    return lambda path: (path / name).write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(shutil.rmtree, id="gone"),
        pytest.param(lambda path: (path / "config.json").unlink(), id="no config"),
        pytest.param(lambda path: (path / "model.safetensors").unlink(), id="no weights"),
        pytest.param(lambda path: shutil.copy(path / "decoder.safetensors", path / "model.safetensors"), id="decoder"),
        pytest.param(_writes("config.json", b""), id="empty config"),
        pytest.param(_writes("config.json", b"\xff\xfe"), id="binary config"),
        pytest.param(_writes("config.json", b'["tokconv_format"]'), id="list"),
        pytest.param(_writes("config.json", b'{"model_type": "clip"}'), id="foreign"),
        pytest.param(_writes("config.json", b'{"tokconv_format": 2}'), id="another format"),
        pytest.param(_without("compressor"), id="no sizes"),
        pytest.param(_with_grid(3), id="another grid"),
        pytest.param(_with_grid(0), id="no grid"),
        pytest.param(_with_grid(-1), id="negative grid"),
        pytest.param(_with_grid("2"), id="text grid"),
        pytest.param(_with_grid(None), id="null grid"),
        pytest.param(_with_grid(2.5), id="half a grid"),
        pytest.param(_writes("model.safetensors", b""), id="empty weights"),
        pytest.param(_writes("model.safetensors", b"\x80\x02}q\x00."), id="a pickle"),
    ],
)
def test_damaged_and_foreign_ones_are_refused(copy: Path, damage: Callable[[Path], object]) -> None:
    damage(copy)
    with pytest.raises(CheckpointError) as error:
        tokconv.load_compressor(copy)
    assert str(copy) in str(error.value)


@given(st.data())
@settings(max_examples=30)
def test_torn_weights_are_refused(
    artefact: Path, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    copy = Path(shutil.copytree(artefact, tmp_path_factory.mktemp("torn") / "copy"))
    weights = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(weights[: data.draw(st.integers(0, len(weights) - 1))])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_compressor(copy)


def test_the_card_holds_the_figures_and_loads_what_it_says(artefact: Path) -> None:
    card = (artefact / "README.md").read_text(encoding="utf-8")
    rows = {line.split("`")[1]: line for line in card.splitlines() if line.startswith("| ") and "`" in line}
    cells = {name: [cell.strip() for cell in line.split("|")[2:-1]] for name, line in rows.items()}
    header = next(line for line in card.splitlines() if line.startswith("| held-out figure"))
    titles = [title.strip() for title in header.split("|")[2:-1]]
    assert titles == ["this compressor", "pooling", "window PCA"]
    assert cells["val/fvu"] == ["0.0500", "0.1000", "0.0700"]
    assert cells["val/gain"] == ["0.5000", "", ""]
    for name, value in BASELINE.items():
        assert name == "val/fvu" or cells[name] == [f"{value:.4f}"] * 3
    assert "val/probe_accuracy" not in cells
    assert "16 to 4 tokens (4x)" in card
    code = card.split("```python\n")[1].split("```")[0]
    # A license that the hub knows, and the place where the folder is.
    assert "\nlicense: unknown\n" in card.split("---")[1]
    assert f"tokconv.load_compressor({str(artefact)!r})" in code
    scope = {"tokens": tokens_of(2)}
    exec(code, scope)
    assert scope["compressed"].shape == (2, 4, 8)


@pytest.mark.parametrize("count", [1, 4])
@pytest.mark.parametrize("with_images", [True, False])
def test_a_picture_has_one_row_per_image(tmp_path: Path, artefact: Path, count: int, with_images: bool) -> None:
    images = [Image.new("RGB", (32, 20), (60 * number, 0, 0)) for number in range(count)] if with_images else None
    out = tmp_path / "pictures" / "compression.png"
    drawn = draw_compression(
        [(load_compressor(artefact), load_decoder(artefact))] * count, tokens_of(count), out, images
    )
    assert [file.name for file in out.parent.iterdir()] == [drawn.name]
    with Image.open(drawn) as picture:
        assert picture.format == "PNG"
        width, height = picture.size
        assert len(picture.convert("RGB").getcolors(1 << 24) or []) > 10
    columns = 5 if with_images else 4
    assert width / height == pytest.approx((CELL * columns + BAR) / ((CELL + TITLE) * count), rel=0.01)

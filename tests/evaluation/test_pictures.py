"""The picture of a compression: one row per image, one panel per stage, at every output grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from PIL import Image

from tokconv.evaluation.pictures import BAR, CELL, TITLE, draw_compression
from tokconv.models.compressor import ResidualCompressor
from tokconv.models.decoder import ConvDecoder

TOKEN_GRID, DIM = 6, 8


def models(grid: int) -> tuple[ResidualCompressor, ConvDecoder]:
    sizes = (TOKEN_GRID, DIM, grid)
    compressor = ResidualCompressor(*sizes, num_layers=0, hidden_dim=4)
    return compressor, ConvDecoder(*sizes, num_layers=0, hidden_dim=4)


def tokens_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, TOKEN_GRID**2, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], list[AxesImage]]]:
    """Collect titles and pictures of each saved figure, row by row."""
    found: list[tuple[list[str], list[AxesImage]]] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **others: object) -> None:
        panels = self.axes[0]
        found.append(([text.get_text() for text in panels.texts], list(panels.get_images())))
        save(self, *args, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


def test_no_two_pictures_overlap(tmp_path: Path, drawn: list[tuple[list[str], list[AxesImage]]]) -> None:
    draw_compression([models(3)] * 3, tokens_of(3), tmp_path / "picture.png")
    boxes = [(left, right, top, bottom) for left, right, bottom, top in (i.get_extent() for i in drawn[0][1])]
    assert len(boxes) == 12
    for number, (left, right, top, bottom) in enumerate(boxes):
        assert left < right
        assert top < bottom
        for other in boxes[number + 1 :]:
            assert other[0] >= right or other[1] <= left or other[2] >= bottom or other[3] <= top


@pytest.mark.parametrize("grid", [1, 2, 4, 6])
@pytest.mark.parametrize(("count", "with_images"), [(1, False), (4, True)])
def test_every_stage_is_a_panel_of_its_own_grid(
    tmp_path: Path, drawn: list[tuple[list[str], list[AxesImage]]], grid: int, count: int, with_images: bool
) -> None:
    images = [Image.new("RGB", (32, 20)) for _ in range(count)] if with_images else None
    out = draw_compression([models(grid)] * count, tokens_of(count), tmp_path / "picture.png", images)
    [(titles, pictures)] = drawn
    shapes = [picture.get_array().shape[:2] for picture in pictures]
    tokens = (TOKEN_GRID, TOKEN_GRID)
    assert shapes == [*([(20, 32)] if with_images else []), tokens, (grid, grid), tokens, tokens] * count
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        columns = len(shapes) // count
        wanted = (110 * (CELL * columns + BAR), 110 * (CELL + TITLE) * count)
        assert picture.size == pytest.approx(wanted, abs=1)
    assert len(titles) == len(pictures)
    assert f"{grid**2} compressed" in titles


def test_the_errors_are_those_of_the_decoder(tmp_path: Path, drawn: list[tuple[list[str], list[AxesImage]]]) -> None:
    compressor, decoder = models(3)
    tokens = tokens_of(2)
    draw_compression([(compressor, decoder)] * len(tokens), tokens, tmp_path / "picture.png")
    with torch.no_grad():
        errors = (decoder(compressor(tokens)) - tokens).square().mean(-1).unflatten(1, (TOKEN_GRID, TOKEN_GRID))
    pairs = zip(*drawn[0], strict=True)
    shown = [torch.as_tensor(picture.get_array().data) for title, picture in pairs if "error" in title]
    assert torch.allclose(torch.stack(shown), errors, atol=1e-5)


def test_the_picture_names_its_files_and_the_unit_of_its_scale(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved: list[tuple[list[str], str, bool]] = []

    def savefig(self: Figure, file: Path, **others: object) -> None:
        panels, scale = self.axes
        # All of the scale is inside of the picture.
        box = scale.get_tightbbox()
        inside = box is not None and box.x1 <= self.bbox.x1 and box.y1 <= self.bbox.y1
        saved.append(([text.get_text() for text in panels.texts], scale.get_ylabel(), inside))
        file.touch()

    monkeypatch.setattr(Figure, "savefig", savefig)
    names = ["photos/cat.jpg", f"photos/{'long' * 20}-dog.png"]
    images = [Image.new("RGB", (32, 20)) for _ in names]
    draw_compression([models(3)] * 2, tokens_of(2), tmp_path / "picture.png", images, names)
    draw_compression([models(3)], tokens_of(1), tmp_path / "tokens.png", names=["features.npy"])
    titles = [titles for titles, _, _ in saved]
    assert titles[0][0] == "cat.jpg"
    assert titles[0][5].startswith("...")
    assert titles[0][5].endswith("long-dog.png")
    assert titles[1][0] == f"features.npy: {TOKEN_GRID**2} tokens"
    for _, unit, inside in saved:
        assert unit == "squared error / variance of the tokens"
        assert inside

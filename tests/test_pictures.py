"""The picture of a compression: one row an image, one panel a stage, at every output grid."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image

from tokconv.models.compressor import ResidualCompressor
from tokconv.models.decoder import ConvDecoder
from tokconv.pictures import draw_compression

TOKEN_GRID, DIM = 6, 8


def models(grid: int) -> tuple[ResidualCompressor, ConvDecoder]:
    sizes = (TOKEN_GRID, DIM, grid)
    compressor = ResidualCompressor(*sizes, num_layers=0, hidden_dim=4)
    return compressor, ConvDecoder(*sizes, num_layers=0, hidden_dim=4)


def tokens_of(batch: int) -> torch.Tensor:
    return torch.randn(batch, TOKEN_GRID**2, DIM, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[list[Axes]]:
    """The panels of each figure that is saved, its colour bars left out."""
    found: list[list[Axes]] = []
    save = Figure.savefig

    def savefig(self: Figure, *args: object, **others: object) -> None:
        found.append([axes for axes in self.axes if axes.get_title()])
        save(self, *args, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(Figure, "savefig", savefig)
    return found


@pytest.mark.parametrize("grid", [1, 2, 4, 6])
@pytest.mark.parametrize(("count", "with_images"), [(1, False), (4, True)])
def test_every_stage_is_a_panel_of_its_own_grid(
    tmp_path: Path, drawn: list[list[Axes]], grid: int, count: int, with_images: bool
) -> None:
    images = [Image.new("RGB", (32, 20)) for _ in range(count)] if with_images else None
    out = draw_compression(*models(grid), tokens_of(count), tmp_path / "picture.png", images)
    [panels] = drawn
    shapes = [axes.get_images()[0].get_array().shape[:2] for axes in panels]
    tokens = (TOKEN_GRID, TOKEN_GRID)
    assert shapes == [*([(20, 32)] if with_images else []), tokens, (grid, grid), tokens, tokens] * count
    with Image.open(out) as picture:
        assert picture.format == "PNG"
        assert picture.size == (round(2.4 * 110 * len(shapes) / count), round(2.5 * 110 * count))


def test_the_errors_are_those_of_the_decoder(tmp_path: Path, drawn: list[list[Axes]]) -> None:
    compressor, decoder = models(3)
    tokens = tokens_of(2)
    draw_compression(compressor, decoder, tokens, tmp_path / "picture.png")
    with torch.no_grad():
        errors = (decoder(compressor(tokens)) - tokens).square().mean(-1).unflatten(1, (TOKEN_GRID, TOKEN_GRID))
    shown = [torch.as_tensor(axes.get_images()[0].get_array().data) for axes in drawn[0] if "error" in axes.get_title()]
    assert torch.allclose(torch.stack(shown), errors, atol=1e-5)

"""Pictures of what compression does to one image: tokens as colours, and the error of every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePath
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from tokconv.errors import import_extra, printable
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder
from tokconv.models.windows import to_grid
from tokconv.system.files import atomic_path

CELL, TITLE, GAP, BAR = 2.3, 0.25, 0.06, 0.95
"""In inches: a picture with its margin, the text above it, that margin, and the colour bar of the errors."""
UNIT = "squared error / variance of the tokens"
MAX_NAME = 30
"""Letters that fit above a picture; of a longer name, the end is shown."""


@torch.no_grad()
def draw_compression(
    codecs: Sequence[tuple[Compressor, Decoder]],
    tokens_BNC: Tensor,
    out: Path,
    images: Sequence[Image.Image] | None = None,
    names: Sequence[str] | None = None,
) -> Path:
    """Write a PNG with one row per image: the image (if given), its tokens, the compressed grid, the decoder's output,
    and the error of each token (its squared error over the tokens' average variance: 0 perfect, 1 the mean token).

    Colours are the three leading principal components of that image's own tokens, the same for all grids of a row.

    Args:
        codecs: compressor and decoder of each image; their grids may differ.
        tokens_BNC: [B, N, C] float32.
        out: the file.
        images: the B images, RGB.
        names: what stands above the first picture of each row, such as the image's file.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    rows, maps = [], []
    for index, ((compressor, decoder), tokens) in enumerate(zip(codecs, tokens_BNC, strict=True)):
        compressed = compressor(tokens[None])
        reconstructed = decoder(compressed)[0]
        scaled = (reconstructed - tokens) / compressor.standardise.scale
        maps.append(to_grid(scaled.square().mean(-1, keepdim=True)[None])[0])
        paint = _Palette(tokens)
        row: list[tuple[str, Any]] = [] if images is None else [("image", np.asarray(images[index]))]
        row += [
            (f"{len(tokens)} tokens", paint(tokens)),
            (f"{compressed.shape[1]} compressed", paint(compressed[0])),
            ("reconstructed", paint(reconstructed)),
        ]
        if names is not None:
            (title, first), *rest = row
            name = _short(names[index])
            row = [(name if title == "image" else f"{name}: {title}", first), *rest]
        rows.append(row)
    _draw(rows, [error.cpu().numpy() for error in maps], float(torch.stack(maps).quantile(0.99)), out)
    return out


def _draw(rows: Sequence[Sequence[tuple[str, Any]]], errors: Sequence[Any], brightest: float, out: Path) -> None:
    """Draw everything in one axes, in inches: one axes per picture takes six times as long, and every trial draws."""
    figure_module = import_extra("matplotlib.figure", "sweep")
    columns = len(rows[0]) + 1
    width, height = CELL * columns + BAR, (CELL + TITLE) * len(rows)
    figure = figure_module.Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))

    def place(column: int, line: int, title: str, picture: Any, **how: Any) -> Any:
        left, top = column * CELL + GAP, line * (CELL + TITLE) + TITLE
        rows_of, columns_of = picture.shape[:2]
        scale = (CELL - 2 * GAP) / max(rows_of, columns_of)
        extent = (left, left + columns_of * scale, top + rows_of * scale, top)
        axes.text(left, top - 0.06, title, fontsize=9)
        return axes.imshow(picture, extent=extent, interpolation="nearest", aspect="auto", **how)

    for line, (row, error) in enumerate(zip(rows, errors, strict=True)):
        for column, (title, picture) in enumerate(row):
            place(column, line, title, picture)
        title = f"error, mean {float(error.mean()):.3f}"
        heat = place(columns - 1, line, title, error[..., 0], cmap="magma", vmin=0, vmax=brightest)
    axes.set(xlim=(0, width), ylim=(height, 0))
    axes.set_axis_off()
    bar = figure.add_axes(((width - BAR + GAP) / width, 0.05, 0.15 / width, 0.9))
    scale = figure.colorbar(heat, cax=bar)
    scale.ax.tick_params(labelsize=8)
    scale.set_label(UNIT, fontsize=8)
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    # A figure refers to itself: its pixels would stay in memory until the garbage collector runs.
    figure.clear()


def _short(name: str) -> str:
    name = printable(PurePath(name).name)
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"


class _Palette:
    """A map of tokens to RGB by the three leading principal components of one image, [N, C] -> [G, G, 3] in 0..1."""

    def __init__(self, tokens_NC: Tensor) -> None:
        self.mean = tokens_NC.mean(0)
        self.axes = torch.linalg.svd(tokens_NC - self.mean, full_matrices=False).Vh[:3].T
        projected = (tokens_NC - self.mean) @ self.axes
        self.low, self.high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def __call__(self, tokens_NC: Tensor) -> Any:
        colour = ((tokens_NC - self.mean) @ self.axes - self.low) / (self.high - self.low).clamp_min(1e-6)
        return to_grid(colour.clamp(0, 1)[None])[0].cpu().numpy()

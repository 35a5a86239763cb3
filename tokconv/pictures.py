"""Pictures of what compression does to one image: tokens as colours, and the error of every token."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from tokconv.errors import import_extra
from tokconv.files import atomic_path
from tokconv.grid import to_grid
from tokconv.models.compressor import Compressor
from tokconv.models.decoder import Decoder


def draw_compression(
    compressor: Compressor, decoder: Decoder, tokens_BNC: Tensor, out: Path, images: list[Image.Image] | None = None
) -> Path:
    """Write a PNG with a row an image: the image (when given), its tokens, the compressed grid, what the decoder makes
    of it, and the error of each token (its squared error over the tokens' average variance: 0 perfect, 1 the mean).

    Colours are the three leading principal components of that image's own tokens, the same for all grids of a row.

    Args:
        tokens_BNC: [B, N, C] float32.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    return draw_compressions([(compressor, decoder)] * len(tokens_BNC), tokens_BNC, out, images)


@torch.no_grad()
def draw_compressions(
    codecs: Sequence[tuple[Compressor, Decoder]], tokens_BNC: Tensor, out: Path, images: list[Image.Image] | None = None
) -> Path:
    """The same with a compressor and a decoder for each image: their grids may differ."""
    rows, maps = [], []
    for index, ((compressor, decoder), tokens) in enumerate(zip(codecs, tokens_BNC, strict=True)):
        compressed = compressor(tokens[None])
        reconstructed = decoder(compressed)[0]
        scaled = (reconstructed - tokens) / compressor.standardise.scale
        maps.append(to_grid(scaled.square().mean(-1, keepdim=True)[None])[0])
        paint = _Palette(tokens)
        row: list[tuple[str, Any]] = [] if images is None else [("image", images[index])]
        row += [
            (f"{len(tokens)} tokens", paint(tokens)),
            (f"{compressed.shape[1]} compressed", paint(compressed[0])),
            ("reconstructed", paint(reconstructed)),
        ]
        rows.append(row)
    errors = torch.stack(maps)
    figure_module = import_extra("matplotlib.figure", "sweep")
    columns = len(rows[0]) + 1
    figure = figure_module.Figure(figsize=(2.4 * columns, 2.5 * len(rows)), layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, row, error in zip(axes, rows, errors, strict=True):
        for axis, (title, picture) in zip(line, row, strict=False):
            axis.imshow(picture, interpolation="nearest")
            axis.set_title(title, fontsize=9)
        heat = line[-1].imshow(error[..., 0].cpu().numpy(), cmap="magma", vmin=0, vmax=float(errors.quantile(0.99)))
        line[-1].set_title(f"error, mean {float(error.mean()):.3f}", fontsize=9)
        figure.colorbar(heat, ax=line[-1], fraction=0.046)
        for axis in line:
            axis.set_axis_off()
    with atomic_path(out) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
    return out


class _Palette:
    """Tokens to RGB by the three leading principal components of one image's tokens, [N, C] -> [G, G, 3] in 0..1."""

    def __init__(self, tokens_NC: Tensor) -> None:
        self.mean = tokens_NC.mean(0)
        self.axes = torch.linalg.svd(tokens_NC - self.mean, full_matrices=False).Vh[:3].T
        projected = (tokens_NC - self.mean) @ self.axes
        self.low, self.high = projected.quantile(0.02, dim=0), projected.quantile(0.98, dim=0)

    def __call__(self, tokens_NC: Tensor) -> Any:
        colour = ((tokens_NC - self.mean) @ self.axes - self.low) / (self.high - self.low).clamp_min(1e-6)
        return to_grid(colour.clamp(0, 1)[None])[0].cpu().numpy()

"""Image files: finding them in folders, and opening any of them as an upright RGB image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """A file, or its open content, as an upright RGB image: first frame, 16 bits scaled to 8, transparency on white.

    Raises:
        OSError: unreadable, truncated or empty; ValueError, SyntaxError and others of Pillow's for damaged files.
        Image.DecompressionBombWarning, Image.DecompressionBombError: more pixels than Pillow's limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                return to_rgb(ImageOps.exif_transpose(image))
        except UnidentifiedImageError as error:
            # Pillow's own text holds the whole path; a store lists reasons and must not depend on where images lie.
            raise UnidentifiedImageError("no image that Pillow can read") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode to RGB, where `convert("RGB")` alone would clip deep gray values and show hidden colours."""
    if image.mode == "F" or image.mode.startswith("I"):
        top = 1.0 if image.mode == "F" else 65535.0
        values = np.nan_to_num(np.asarray(image, dtype=np.float64)) / top
        image = Image.fromarray(np.rint(values.clip(0, 1) * 255).astype(np.uint8))
    elif image.has_transparency_data:
        layers = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", layers.size, "white"), layers)
    return image.convert("RGB")


def file_size(path: Path) -> int:
    """Bytes, -1 when there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """What is in a folder, hidden entries left out."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder, or a link to one; a link that only leads to itself is none."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def has_images(folder: Path) -> bool:
    """Whether images lie directly in the folder."""
    return any(_is_image(entry.name) and not is_folder(entry) for entry in list_folder(folder))


def find_images(root: Path, folder: Path) -> list[tuple[str, str | None]]:
    """(key, class or None) of every image below `folder`, keys relative to `root`, sorted."""
    keys = sorted(path.relative_to(root).as_posix() for path in _walk(folder, ()))
    if has_images(folder):
        return [(key, None) for key in keys]
    depth = len(folder.relative_to(root).parts)
    return [(key, key.split("/")[depth]) for key in keys]


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Image files below a folder; links are followed, except one that leads back to a folder above it."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    for entry in list_folder(folder):
        if is_folder(entry):
            yield from _walk(folder / entry.name, (*above, here))
        elif _is_image(entry.name):
            yield folder / entry.name

"""Image files: finding them in folders, and opening each as an upright RGB image."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from tokconv.encoding.sources.modes import stated_values, to_rgb

SUFFIXES = (".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


def open_image(file: Path | IO[bytes]) -> Image.Image:
    """Open a file, or its content, as an upright RGB image: first frame, 8 bits, transparency on white.

    Raises:
        OSError: the file is unreadable, truncated or empty.
        ValueError: the range of its grey values is unknown.
        SyntaxError, and other errors of Pillow: the file is damaged.
        Image.DecompressionBombWarning, Image.DecompressionBombError: it has more pixels than Pillow's limit.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file) as image:
                stated = stated_values(image)
                return to_rgb(ImageOps.exif_transpose(image), stated)
        except UnidentifiedImageError as error:
            # Pillow's message contains the path; a store records reasons, and must not depend on where the images are.
            raise UnidentifiedImageError("no image that Pillow can read") from error


def file_size(path: Path) -> int:
    """Return the size in bytes; -1 if there is no such file."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES)


def list_folder(folder: Path) -> list[os.DirEntry[str]]:
    """Return the entries of a folder without the hidden ones."""
    with os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.name.startswith(".")]


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Return whether an entry is a folder or a link to one; a link that leads to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def has_images(folder: Path) -> bool:
    """Return whether there are images directly in the folder."""
    return any(_is_image(entry.name) and not is_folder(entry) for entry in list_folder(folder))


def find_images(root: Path, folder: Path) -> list[tuple[str, str | None]]:
    """Return (key, class or None) of every image below `folder`, sorted; keys are relative to `root`."""
    keys = sorted(path.relative_to(root).as_posix() for path in _walk(folder, ()))
    if has_images(folder):
        return [(key, None) for key in keys]
    depth = len(folder.relative_to(root).parts)
    return [(key, key.split("/")[depth]) for key in keys]


def _walk(folder: Path, above: tuple[tuple[int, int], ...]) -> Iterator[Path]:
    """Yield the image files below a folder; links are followed unless they lead back to a folder above."""
    stat = folder.stat()
    here = (stat.st_dev, stat.st_ino)
    if here in above:
        return
    for entry in list_folder(folder):
        if is_folder(entry):
            yield from _walk(folder / entry.name, (*above, here))
        elif _is_image(entry.name):
            yield folder / entry.name

"""Image files: their suffixes, and opening each as an upright RGB image."""

from __future__ import annotations

import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import IO

from PIL import Image, ImageOps, UnidentifiedImageError

from tokconv.encoding.sources.modes import stated_values, to_rgb

SUFFIXES = (
    *(".apng", ".avif", ".avifs", ".blp", ".bmp", ".bw", ".cur", ".dcx", ".dds", ".dib", ".fit", ".fits", ".flc"),
    *(".fli", ".ftc", ".ftu", ".gbr", ".gif", ".icb", ".icns", ".ico", ".iim", ".j2c", ".j2k", ".jfif", ".jp2"),
    *(".jpc", ".jpe", ".jpeg", ".jpf", ".jpg", ".jpx", ".mpo", ".msp", ".pbm", ".pcx", ".pfm", ".pgm", ".png", ".pnm"),
    *(".ppm", ".psd", ".pxr", ".qoi", ".ras", ".rgb", ".rgba", ".sgi", ".tga", ".tif", ".tiff", ".vda", ".vst"),
    *(".webp", ".xbm", ".xpm"),
)
"""The image files of a folder: every suffix of a format that Pillow reads by itself. `tokconv compress` reads the same,
since both open files by their content, with `open_image`. Left out are .eps and .ps (Ghostscript would run), formats
that Pillow only names (such as .h5) or will drop (.im), and .pcd (nowadays point clouds). A literal: a store must not
depend on Pillow's version."""


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
            # Opened here: of a path, Pillow maps uncompressed pixels, wrongly those of a TIFF that lies on its side.
            with file.open("rb") if isinstance(file, Path) else nullcontext(file) as content:
                image = Image.open(content)
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

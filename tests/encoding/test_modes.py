"""Images of every mode that Pillow opens: scaled by the range of their values, or refused with the reason."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tokconv.encoding.sources.coco import CocoSource
from tokconv.encoding.sources.files import open_image
from tokconv.encoding.sources.folder import FolderSource
from tokconv.encoding.sources.huggingface import HuggingFaceSource
from tokconv.encoding.sources.modes import Stated, to_rgb

RAMP = np.linspace(0, 255, 4096).reshape(64, 64)
"""A grey ramp of 256 levels, mean 127.5."""


def saved(values: Any, suffix: str = "TIFF", **options: Any) -> io.BytesIO:
    file = io.BytesIO()
    Image.fromarray(values).save(file, suffix, **options)
    file.seek(0)
    return file


def tiff(values: Any, bits: int, sample_format: int, *, photometric: int = 1) -> io.BytesIO:
    """Write a TIFF of one row, of a kind that Pillow does not write."""
    data = values if isinstance(values, bytes) else values.tobytes()
    width = len(data) * 8 // bits
    short, long = 3, 4
    entries = [
        *((256, long, width), (257, long, 1), (258, short, bits), (259, short, 1), (262, short, photometric)),
        *((273, long, 8), (277, short, 1), (278, long, 1), (279, long, len(data)), (339, short, sample_format)),
    ]
    directory = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in entries)
    head = b"II" + struct.pack("<HI", 42, 8 + len(data))
    return io.BytesIO(head + data + struct.pack("<H", len(entries)) + directory + bytes(4))


def levels(file: Any) -> list[int]:
    """Return the grey levels of an image of one row."""
    return [int(level) for level in np.asarray(open_image(file))[0, :, 0]]


@pytest.mark.parametrize("scale", [1 / 255, 1, 257])
def test_a_float_image_is_scaled_by_the_range_that_it_fills(scale: float) -> None:
    grey = np.asarray(open_image(saved((RAMP * scale).astype("f4"))))
    np.testing.assert_array_equal(grey[..., 0], np.rint(RAMP))
    assert grey.mean() == pytest.approx(127.5, abs=0.1)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.where(RAMP > 200, np.nan, RAMP), "not finite"),
        (np.where(RAMP > 200, np.inf, RAMP), "not finite"),
        (RAMP - 3, "from -3 to 252"),
        (RAMP * 1e5, "from 0 to 2.55e"),
        # Would be nearly black: an overshoot of a resized image.
        (RAMP / 250, r"from 0 to 1\.02; must fill one of the ranges 0 to 1, 0 to 255, 0 to 65535"),
        (RAMP * 1.02, "from 0 to 260"),
    ],
)
def test_a_float_image_of_another_range_is_refused_with_its_values(values: Any, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        open_image(saved(values.astype("f4")))


def test_integers_are_scaled_by_what_their_file_states() -> None:
    wide = (RAMP * 257).astype("u2")
    for file in (saved(wide), saved(wide.astype(">u2")), saved(wide, "PNG"), saved(wide, "JPEG2000")):
        np.testing.assert_allclose(np.asarray(open_image(file))[..., 0], RAMP, atol=0.51)
    assert levels(tiff(np.array([0, 16384, 32767], "<i2"), 16, 2)) == [0, 128, 255]
    assert levels(tiff(bytes([0xFF, 0xF0, 0x00]), 12, 1)) == [255, 0]
    assert levels(io.BytesIO(b"P5 2 1 4095\n" + bytes([15, 255, 0, 200]))) == [255, 12]
    with pytest.raises(ValueError, match="from -30000 to 0; must be 0 to 32767"):
        levels(tiff(np.array([0, -30000], "<i2"), 16, 2))


def test_integers_of_32_bits_state_nothing_and_are_scaled_by_their_values() -> None:
    for scale in (1, 257):
        assert levels(saved(np.array([[0, 100 * scale, 255 * scale]], "i4"))) == [0, 100, 255]
    for values in ([0, 1], [-1, 200], [0, 10**6]):
        with pytest.raises(ValueError, match=f"from {min(values)} to .*save. with 8 or 16 bits"):
            levels(saved(np.array([values], "i4")))


def test_zero_is_white_where_the_file_says_so() -> None:
    assert levels(tiff(np.array([0, 65535], "<u2"), 16, 1, photometric=0)) == [255, 0]
    assert levels(tiff(np.array([0, 255], "<f4"), 32, 3, photometric=0)) == [255, 0]


def test_a_transparent_value_of_16_bits_is_white() -> None:
    grey = saved(np.array([[700, 0]], "u2"), "PNG", transparency=700)
    assert levels(grey) == [255, 0]

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.array([0xFF00, 0x1200, 0, 0, 0, 0], ">u2").tobytes()
    head = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    chunks = ((b"IHDR", head), (b"tRNS", pixels[:6]), (b"IDAT", zlib.compress(b"\0" + pixels)), (b"IEND", b""))
    file = io.BytesIO(b"\x89PNG\r\n\x1a\n" + b"".join(chunk(*part) for part in chunks))
    assert np.asarray(open_image(file)).tolist() == [[[255, 255, 255], [0, 0, 0]]]


@pytest.mark.parametrize("mode", sorted(set(Image.MODES) - {"F"}))
def test_every_mode_of_pillow_keeps_its_colour(mode: str) -> None:
    """A grey of 51 in 255, opaque where the mode has transparency."""
    colours: dict[str, Any] = {"1": 1, "LA": (51, 255), "La": (51, 255), "YCbCr": (51, 128, 128), "HSV": (0, 0, 51)}
    colours |= {"RGBA": (51, 51, 51, 255), "RGBa": (51, 51, 51, 255), "RGBX": (51, 51, 51, 0), "RGB": (51, 51, 51)}
    colours |= {"CMYK": (204, 204, 204, 0), "LAB": (54, 128, 128), "L": 51, "P": 0, "PA": (0, 255), "I": 51}
    image = Image.new(mode, (2, 1), colours.get(mode, 51 * 257))
    if mode in ("P", "PA"):
        image.putpalette([51, 51, 51, 0, 0, 0])
    found = np.asarray(to_rgb(image, Stated(65535.0 if "16" in mode else None, False, False)))
    np.testing.assert_allclose(found, 255 if mode == "1" else 51, atol=1)


def test_all_sources_and_compress_open_an_image_in_the_same_way(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    content = saved(RAMP.astype("f4")).getvalue()
    for name in ("train2017/a.tif", "val2017/b.tif"):
        (tmp_path / "coco" / name).parent.mkdir(parents=True)
        (tmp_path / "coco" / name).write_bytes(content)
    cells = [{"bytes": content, "path": None}] * 2
    features = datasets.Features({"image": datasets.Image()})
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(tmp_path / "hf")
    wanted = np.rint(RAMP)
    for image in (
        FolderSource(tmp_path / "coco" / "train2017").load(0),
        CocoSource(tmp_path / "coco").load(1),
        HuggingFaceSource(str(tmp_path / "hf")).load(0),
        open_image(tmp_path / "coco" / "val2017" / "b.tif"),  # as tokconv compress does
    ):
        np.testing.assert_array_equal(np.asarray(image)[..., 0], wanted)

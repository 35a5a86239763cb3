"""The format of a token store on disk: settings, shard files, and the dtypes that tokens are stored in.

Shapes: n images of a shard, N = G * G tokens, C channels. A shard is a safetensors file with `tokens` [n, N, C],
`scale` [n, N, 1] float32 (int8 only), `items` [n] int64 (index in the source), `labels` [n] int64 (labelled sources
only) and `contents` [n, 16] uint8 (digests of the images' content; zeros or absent if unknown). Its metadata holds the
digest of the settings and the images that were skipped, so that a shard alone tells whether it belongs to a store and
is whole.

Images that could be read only later make another version of a store: their shards and the index are written anew under
other names, and `index-V.json` keeps the version before.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from tokconv.errors import StoreError
from tokconv.system.files import read_json_object

FORMAT_VERSION = 1
INDEX = "index.json"
SETTINGS = "settings.json"
METADATA = "tokconv"
SHARD_NAME = re.compile(r"tokens-\d{5,9}(-\d{1,9})?\.safetensors")
OLD_INDEX = "index-*.json"
"""The indices of earlier versions."""
VIEW = "#view-"
"""Ends the key of an image in that of a view of it (`tokconv.encoding.sources.views`)."""
DIGEST_BYTES = 16
PROBES = ("source.sizes", "source.values", "source.contents")
"""What earlier tokconvs wrote into settings to tell data sets apart; now `contents.py` does."""
MAX_SHARD_IMAGES = 256
MAX_SHARD_BYTES = 2**28
MAX_HEADER_BYTES = 2**24
DTYPES = {"float16": (torch.float16, "F16"), "bfloat16": (torch.bfloat16, "BF16"), "int8": (torch.int8, "I8")}
"""`data.dtype` -> torch's and safetensors' name for it."""
MAX_ROUNDING = 0.1
"""Share of the variance. DINOv2-small loses 0.0004 % in bfloat16, 0.02 % in int8, and 0.5 % on a blank image."""
LIMITS = {"num_items": 2**40, "token_grid": 2**12, "dim": 2**20, "shard_size": 2**20}
"""Larger values in settings are damage or an attack, not a store."""


@dataclass(frozen=True, kw_only=True)
class StoreSettings:
    """Everything that determines the content of a store; stores with equal settings are interchangeable."""

    encoder: dict[str, Any]
    """`EncoderSpec.identity()`."""
    source: dict[str, Any]
    """`ImageSource.identity()`."""
    num_items: int
    """Images in the source, readable or not."""
    token_grid: int
    dim: int
    dtype: str = "float16"
    val_fraction: float = 0.1
    class_names: tuple[str, ...] = ()
    shard_size: int = MAX_SHARD_IMAGES
    """Source images per shard: shard s covers [s * shard_size, (s + 1) * shard_size)."""

    @property
    def num_tokens(self) -> int:
        """N."""
        return self.token_grid**2

    @property
    def num_shards(self) -> int:
        return -(-self.num_items // self.shard_size)

    def shard_items(self, number: int) -> range:
        """Return the source indices that a shard covers."""
        return range(number * self.shard_size, min((number + 1) * self.shard_size, self.num_items))

    def to_json(self) -> dict[str, Any]:
        """Return the settings as a JSON object."""
        return {**dataclasses.asdict(self), "class_names": list(self.class_names)}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> StoreSettings:
        """Invert `to_json`. Raises KeyError, TypeError or ValueError for any other object."""
        settings = cls(**{**value, "class_names": tuple(value["class_names"])})
        if settings.dtype not in DTYPES or not isinstance(settings.val_fraction, float):
            raise ValueError(f"dtype {settings.dtype!r}, val_fraction {settings.val_fraction!r}")
        for name, limit in LIMITS.items():
            number = getattr(settings, name)
            if type(number) is not int or not 0 < number <= limit:
                raise ValueError(f"{name} {number!r}")
        return settings

    def digest(self) -> str:
        """Return the sha256 of the settings."""
        return digest(self.to_json())

    def difference(self, wanted: StoreSettings) -> str | None:
        """Return the most telling setting that differs from the wanted one, with both values; None if all are equal."""
        mine, theirs = _flatten(self.to_json()), _flatten(wanted.to_json())
        mine = {key: value for key, value in mine.items() if key in theirs or key not in PROBES}
        # A different encoder or source entails other differences; it is the one to report.
        for key in sorted(
            {*mine, *theirs}, key=lambda k: (k != "encoder.name", not k.startswith(("encoder.", "source.")), k)
        ):
            if mine.get(key) != theirs.get(key):
                return f"{key}: stored {mine.get(key)!r}, wanted {theirs.get(key)!r}"
        return None


class Skipped(NamedTuple):
    """An image that could not be read."""

    item: int
    reason: str


@dataclass(frozen=True)
class ShardHeader:
    """What the header of a shard holds."""

    count: int
    skipped: tuple[Skipped, ...]


def image_bytes(token_grid: int, dim: int, dtype: str) -> int:
    """Return how many bytes the tokens of one image take."""
    per_token = dim * torch.empty((), dtype=DTYPES[dtype][0]).element_size()
    return token_grid**2 * (per_token + (4 if dtype == "int8" else 0))


def default_shard_size(token_grid: int, dim: int, dtype: str) -> int:
    """Return the images per shard: at most MAX_SHARD_IMAGES, with at most MAX_SHARD_BYTES in total."""
    return max(1, min(MAX_SHARD_IMAGES, MAX_SHARD_BYTES // image_bytes(token_grid, dim, dtype)))


def shard_name(number: int, version: int = 0) -> str:
    """Return the file name of a shard that was written for a version of the store."""
    return f"tokens-{number:05d}{f'-{version}' if version else ''}.safetensors"


def pack(tokens: Tensor, dtype: str) -> dict[str, Tensor]:
    """Convert tokens [n, N, C] of any float dtype and device to what a shard stores, on the CPU.

    Raises:
        StoreError: a value is not finite, or too large for the dtype.
    """
    if not torch.isfinite(tokens).all():
        raise StoreError("the tower makes tokens that are not finite; use model.clip.precision=float32")
    if dtype == "int8":
        # One scale per token: CLIP's tokens differ in norm far more than their channels do.
        scale = tokens.float().abs().amax(dim=-1, keepdim=True) / 127
        steps = (tokens.float() / scale.clamp_min(torch.finfo(torch.float32).tiny)).round().clamp(-127, 127)
        packed = {"tokens": steps.to(torch.int8), "scale": scale}
    else:
        packed = {"tokens": tokens.to(DTYPES[dtype][0])}
    if not all(torch.isfinite(value).all() for value in packed.values()):
        raise StoreError(f"data.dtype: some tokens do not fit {dtype}; use data.dtype=bfloat16 or another precision")
    return {name: value.cpu() for name, value in packed.items()}


def check_rounding(tokens: Tensor, packed: Mapping[str, Tensor], dtype: str) -> None:
    """Check what storing tokens [n, N, C] as `pack` made them costs: an offset that all share leaves few digits.

    Raises:
        StoreError: the error is more than `MAX_ROUNDING` of the variance around the mean token.
    """
    tokens = tokens.float().cpu()
    stored = packed["tokens"].float() * packed.get("scale", 1.0)
    variance = float((tokens - tokens.mean((0, 1))).square().mean())
    if variance > 0 and (lost := float((tokens - stored).square().mean()) / variance) > MAX_ROUNDING:
        raise StoreError(
            f"data.dtype: rounding to {dtype} costs {lost:.0%} of the tokens' variance, because they lie far from 0; "
            "use data.dtype=float16, or subtract their mean first"
        )


def unpack(packed: Mapping[str, Tensor], row: int, out: Tensor) -> None:
    """Write the tokens of one row to `out` [N, C] float32; of a mapped file only the pages of that row are read.

    They are written straight to their place: an intermediate copy costs more than the reading.
    """
    out.copy_(packed["tokens"][row])
    if "scale" in packed:
        out.mul_(packed["scale"][row])


def read_header(path: Path, settings: StoreSettings, number: int) -> ShardHeader:
    """Read a shard's header; check by it and the size that the file is the whole shard `number` of these settings.

    Raises:
        StoreError: the file is missing, truncated, damaged in its header, or a shard of other settings.
    """
    tensors, metadata = _safetensors_header(path)
    try:
        content = json.loads(metadata[METADATA])
        belongs = content["settings"] == settings.digest() and content["shard"] == number
        skipped = tuple(Skipped(item, reason) for item, reason in content["skipped"])
        count = len(settings.shard_items(number)) - len(skipped)
        found = {name: (entry["dtype"], tuple(entry["shape"])) for name, entry in tensors.items()}
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{path}: is not a shard of a token store") from error
    if not belongs:
        raise StoreError(f"{path}: is a shard of another store")
    wanted = {
        "tokens": (DTYPES[settings.dtype][1], (count, settings.num_tokens, settings.dim)),
        "items": ("I64", (count,)),
        **({"scale": ("F32", (count, settings.num_tokens, 1))} if settings.dtype == "int8" else {}),
        **({"labels": ("I64", (count,))} if settings.class_names else {}),
        # Shards of earlier versions have none.
        **({"contents": ("U8", (count, DIGEST_BYTES))} if "contents" in found else {}),
    }
    if found != wanted:
        raise StoreError(f"{path}: holds {found}, expected {wanted}")
    return ShardHeader(count, skipped)


def map_shard(path: Path) -> dict[str, Tensor]:
    """Return all tensors of a shard as views of the mapped file: nothing is read yet, and no file stays open."""
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except Exception as error:  # safetensors' own error derives from Exception alone
        raise StoreError(f"{path}: cannot be read ({error})") from error


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object. Raises StoreError if it cannot be read."""
    try:
        return read_json_object(path)
    except (OSError, ValueError) as error:
        raise StoreError(f"{path}: unreadable ({error}); remove the directory and encode again") from error


def check_settings(path: Path, wanted: StoreSettings) -> None:
    """Raise StoreError if the store in a directory, finished or not, has other settings, or unreadable ones."""
    stored = read_json(path / INDEX).get("settings") if (path / INDEX).exists() else read_json(path / SETTINGS)
    check_stored(path, stored or {}, wanted, "the directory")


def check_stored(place: str | Path, stored: Any, wanted: StoreSettings, content: str) -> None:
    """Raise StoreError if the JSON of stored settings is damaged or differs, naming the most telling difference.

    Args:
        place: where they are stored.
        content: what the user may remove there, for the message.
    """
    try:
        difference = StoreSettings.from_json(stored).difference(wanted)
    except (KeyError, TypeError, ValueError) as error:
        raise StoreError(f"{place}: damaged settings ({error}); remove {content} and encode again") from error
    if difference is not None:
        raise StoreError(
            f"data.store: {place} was made with other settings ({difference}); choose another data.store or remove "
            f"{content}"
        )


def digest(value: Any) -> str:
    """Return the sha256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _safetensors_header(path: Path) -> tuple[dict[str, dict[str, Any]], dict[str, str]]:
    """Read tensor entries and metadata; check the file's size: reading past the end of a mapped file is a crash."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > min(size - 8, MAX_HEADER_BYTES):
                raise ValueError("the header is longer than the file")
            header = json.loads(file.read(length))
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
    except (OSError, struct.error, ValueError, KeyError, TypeError, IndexError, AttributeError) as error:
        raise StoreError(f"{path}: missing, truncated or damaged ({type(error).__name__})") from error
    if end != size:
        raise StoreError(f"{path}: has {size} bytes instead of the {end} of its header")
    return header, metadata


def _flatten(value: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        if isinstance(inner, Mapping):
            flat |= _flatten(inner, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = inner
    return flat

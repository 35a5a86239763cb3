"""`tokconv compress`: images to compressed tokens, by one compressor or by a choice among a sweep's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from tokconv.cli.options import refuse
from tokconv.config.tree import ClipConfig
from tokconv.encoding.sources.features import GIVEN
from tokconv.encoding.sources.files import open_image
from tokconv.encoding.towers.families import layer_from_start
from tokconv.encoding.towers.tower import EncoderSpec, VisionTower, describe
from tokconv.errors import CheckpointError, ConfigError, DataError, first_line, import_extra, printable
from tokconv.evaluation.pictures import draw_compression
from tokconv.exports.artefact import load_compressor, load_decoder, read_config
from tokconv.exports.champions import find_champion
from tokconv.exports.dynamic.compressor import MEDIAN, DynamicCompressor, load_dynamic
from tokconv.exports.dynamic.predictor import check_target
from tokconv.exports.dynamic.ragged import save_ragged
from tokconv.system.devices import resolve_device
from tokconv.system.files import atomic_path
from tokconv.system.terminal import progress_line

PICTURED_IMAGES = 8
PICTURED_SIZE = (512, 512)


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Compress images with one compressor, or with those of a folder. Raises TokconvError."""
    _check_files(args.images, [args.out] if args.picture is None else [args.out, args.picture])
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: got {args.batch_size}; must be at least 1")
    if args.picture is not None:
        import_extra("matplotlib.figure", "sweep")
    reader = _Reader(args.images, args.batch_size, pictured=PICTURED_IMAGES if args.picture is not None else 0)
    if args.compressors is not None:
        refuse(args, ("grid", "purpose"), "--compressor; among --compressors the grid is chosen for each image")
        if args.target_fvu is None:
            raise ConfigError("--compressors: needs --target-fvu, the largest error of an image, as 0.02")
        check_target(args.target_fvu, "--target-fvu")
        confidence = MEDIAN if args.confidence is None else args.confidence
        dynamic = load_dynamic(args.compressors, target_fvu=args.target_fvu, confidence=confidence)
        tower = _tower_of(dynamic.paths[0], args.encoder, args.device)
        compressors = _compress_dynamic(reader, dynamic, tower, args.out)
    else:
        refuse(args, ("target_fvu", "confidence"), "--compressors; a single --compressor leaves nothing to choose")
        compressor = find_champion(args.compressor, args.grid, args.purpose)
        tower = _tower_of(compressor, args.encoder, args.device)
        compressors = _compress_fixed(reader, compressor, tower, args.out)
    if args.picture is not None:
        _draw(reader, compressors, args.picture)


class _Reader:
    """The images to compress, read in batches; the first of them are kept with their tokens for a picture."""

    def __init__(self, images: Sequence[Path], batch_size: int, pictured: int) -> None:
        self.images, self.batch_size, self._pictured = images, batch_size, pictured
        self.names = [str(path) for path in images]
        self.pictures: list[Image.Image] = []
        self.tokens: list[Tensor] = []
        """[b, N, C] per batch, as far as there are pictures."""

    def batches(self, tower: VisionTower) -> Iterator[Tensor]:
        """Yield the tokens [b, N, C] of all images in order, on the tower's device."""
        with progress_line("compressing") as line:
            for first in range(0, len(self.images), self.batch_size):
                pixels = []
                for path in self.images[first : first + self.batch_size]:
                    image = _open(path)
                    pixels.append(tower.preprocess([image]))
                    if len(self.pictures) < self._pictured:
                        image.thumbnail(PICTURED_SIZE)
                        self.pictures.append(image)
                tokens = tower.encode(torch.cat(pixels))
                if sum(map(len, self.tokens)) < len(self.pictures):
                    self.tokens.append(tokens.cpu())
                yield tokens
                if len(self.images) > self.batch_size:
                    line(first + len(pixels), len(self.images))


def _compress_fixed(reader: _Reader, path: Path, tower: VisionTower, out: Path) -> list[Path]:
    """Write the tokens of all images, and return the compressor of each."""
    network = load_compressor(path).to(tower.device)
    result = torch.cat([network(tokens).cpu() for tokens in reader.batches(tower)])
    with atomic_path(out) as temporary:
        save_file({"tokens": result}, temporary, {"images": json.dumps(reader.names)})
    print(f"{printable(out)}: tokens {list(result.shape)}, {network.token_grid**2 / result.shape[1]:.3g}x fewer")
    return [path] * len(result)


def _compress_dynamic(reader: _Reader, network: DynamicCompressor, tower: VisionTower, out: Path) -> list[Path]:
    """Write the tokens of all images, and return the compressor that was chosen for each."""
    network.to(tower.device)
    parts: list[Tensor] = []
    chosen: list[int] = []
    unmet = 0
    for tokens in reader.batches(tower):
        index, meets = network.choose(tokens)
        parts += [part.cpu() for part in network.compress(tokens, index)]
        chosen += index.tolist()
        unmet += int((~meets).sum())
    save_ragged(out, parts, reader.names)
    mean = sum(map(len, parts)) / len(parts)
    print(f"{printable(out)}: {mean:.1f} tokens per image on average, {network.token_grid**2 / mean:.3g}x fewer")
    for number, grid in enumerate(network.grids.tolist()):
        count = chosen.count(number)
        print(f"  {grid} x {grid}: {count} image{'' if count == 1 else 's'}")
    if unmet:
        largest = int(network.grids[-1])
        print(
            f"  {unmet} of the {len(parts)} images are not expected to meet the target at any grid; "
            f"they got the largest, {largest} x {largest}"
        )
    return [network.paths[number] for number in chosen]


def _draw(reader: _Reader, compressors: Sequence[Path], picture: Path) -> None:
    """Draw the pictured images, each with its own compressor."""
    paths = compressors[: len(reader.pictures)]
    codecs = {path: (load_compressor(path), load_decoder(path)) for path in paths}
    tokens = torch.cat(reader.tokens)[: len(paths)]
    draw_compression([codecs[path] for path in paths], tokens, picture, reader.pictures)
    more = f" of the first {len(paths)} images" if len(reader.images) > len(paths) else ""
    print(f"{printable(picture)}: image, tokens, compressed grid, reconstruction, error of each token{more}")


def _check_files(images: Sequence[Path], outputs: Sequence[Path]) -> None:
    for path in images:
        if not path.is_file():
            raise DataError(f"{path}: {'is a folder; name its images' if path.is_dir() else 'there is no such image'}")
    taken = {path.resolve() for path in images}
    for path in outputs:
        if path.is_dir():
            raise ConfigError(f"{path}: is a folder; name the file to write")
        if path.resolve() in taken:
            raise ConfigError(f"{path}: is named twice; each file to write needs its own name")
        taken.add(path.resolve())


def _tower_of(compressor: Path, encoder: str | None, device: str | None) -> VisionTower:
    """Load the tower whose tokens a compressor was trained on. Raises CheckpointError if `encoder` is another one."""
    description = read_config(compressor)
    try:
        clip, trained_on = ClipConfig(**description["clip"]), dict(description["encoder"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"{compressor / 'config.json'}: damaged, it describes no encoder") from error
    if encoder is not None:
        clip = replace(clip, model_name=encoder, revision=None)
    spec = describe(clip)
    if not _same_encoder(spec, trained_on):
        raise CheckpointError(
            f"{compressor}: was trained on tokens of {trained_on.get('name')} "
            f"({trained_on.get('revision')}), not of {clip.model_name} ({spec.revision})"
        )
    return VisionTower(clip, resolve_device(device))


def _same_encoder(spec: EncoderSpec, trained_on: Mapping[str, Any]) -> bool:
    if trained_on.get("revision") != GIVEN:
        return spec.identity() == trained_on
    # The tokens were given, so only this much is known of their encoder.
    layer = trained_on.get("layer")
    if isinstance(layer, int):
        layer = layer_from_start(layer, spec.num_layers)
    known = (spec.name, spec.layer, spec.token_grid, spec.dim)
    return known == (trained_on.get("name"), layer, trained_on.get("token_grid"), trained_on.get("dim"))


def _open(path: Path) -> Image.Image:
    try:
        return open_image(path)
    except Exception as error:  # Pillow raises many kinds of errors for a damaged file
        raise DataError(f"{path}: cannot be read as an image ({first_line(error)})") from error

"""`tokconv compress`: images or their tokens to compressed tokens, by one compressor or by a choice among a sweep's."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tokconv.cli.compress_inputs import ImageInput, Input, TokenInput, image_files
from tokconv.cli.options import refuse
from tokconv.config.tree import ClipConfig
from tokconv.encoding.console import print_skipped
from tokconv.encoding.sources.features import GIVEN
from tokconv.encoding.towers.families import layer_from_start
from tokconv.encoding.towers.tower import EncoderSpec, VisionTower, describe
from tokconv.errors import CheckpointError, ConfigError, DataError, import_extra, printable
from tokconv.evaluation.pictures import draw_compression
from tokconv.exports.artefact import load_compressor, load_decoder, read_config
from tokconv.exports.champions import find_champion
from tokconv.exports.dynamic.compressor import MEDIAN, DynamicCompressor, load_dynamic
from tokconv.exports.dynamic.predictor import check_target
from tokconv.exports.dynamic.ragged import save_ragged
from tokconv.models.compressor import Compressor
from tokconv.system.devices import resolve_device
from tokconv.system.files import atomic_path

PICTURED_IMAGES = 8


@torch.inference_mode()
def run(args: argparse.Namespace) -> None:
    """Compress images or tokens with one compressor, or with those of a folder. Raises TokconvError."""
    args.named, args.images = set(args.images), image_files(args.images)
    _check_files(args)
    if args.batch_size < 1:
        raise ConfigError(f"--batch-size: got {args.batch_size}; must be at least 1")
    if args.picture is not None:
        import_extra("matplotlib.figure", "sweep")
    if args.compressors is not None:
        refuse(args, ("grid", "purpose"), "--compressor; among --compressors the grid is chosen for each image")
        if args.target_fvu is None:
            raise ConfigError("--compressors: needs --target-fvu, the largest error of an image, as 0.02")
        check_target(args.target_fvu, "--target-fvu")
        confidence = MEDIAN if args.confidence is None else args.confidence
        dynamic = load_dynamic(args.compressors, target_fvu=args.target_fvu, confidence=confidence)
        given = _open_input(args, dynamic.paths[0], dynamic)
        compressors = _compress_dynamic(given, dynamic, args.out)
    else:
        refuse(args, ("target_fvu", "confidence"), "--compressors; a single --compressor leaves nothing to choose")
        path = find_champion(args.compressor, args.grid, args.purpose)
        if path != args.compressor:
            print(f"compressor: {printable(path)}")
        network = load_compressor(path)
        given = _open_input(args, path, network)
        compressors = _compress_fixed(given, path, network, args.out)
    if given.skipped:
        print_skipped(given.skipped, rest="; the names of all others are in the file")
    if args.picture is not None:
        _draw(given, compressors, args.picture)


def _open_input(args: argparse.Namespace, path: Path, network: Compressor | DynamicCompressor) -> Input:
    """Open the images or the tokens that a compressor at `path` is given."""
    pictured = PICTURED_IMAGES if args.picture is not None else 0
    if args.tokens is None:
        tower = _tower_of(path, args.encoder, args.device)
        return ImageInput(args.images, args.named, args.batch_size, pictured, tower)
    given = TokenInput(
        args.tokens,
        args.extra_tokens,
        args.batch_size,
        pictured,
        token_grid=network.token_grid,
        dim=network.dim,
        device=resolve_device(args.device),
    )
    for note in given.notes:
        print(f"{printable(args.tokens)}: {printable(note)}")
    return given


def _compress_fixed(given: Input, path: Path, network: Compressor, out: Path) -> list[Path]:
    """Write the tokens of all images, and return the compressor of each."""
    network.to(given.device)
    result = torch.cat([network(tokens).cpu() for tokens in given.batches()])
    with atomic_path(out) as temporary:
        save_file({"tokens": result}, temporary, {"images": json.dumps(given.names)})
    print(f"{printable(out)}: tokens {list(result.shape)}, {network.token_grid**2 / result.shape[1]:.3g}x fewer")
    return [path] * len(result)


def _compress_dynamic(given: Input, network: DynamicCompressor, out: Path) -> list[Path]:
    """Write the tokens of all images, and return the compressor that was chosen for each."""
    network.to(given.device)
    parts: list[Tensor] = []
    chosen: list[int] = []
    unmet = 0
    for tokens in given.batches():
        index, meets = network.choose(tokens)
        parts += [part.cpu() for part in network.compress(tokens, index)]
        chosen += index.tolist()
        unmet += int((~meets).sum())
    save_ragged(out, parts, given.names)
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


def _draw(given: Input, compressors: Sequence[Path], picture: Path) -> None:
    """Draw the pictured images, each with its own compressor."""
    paths = compressors[: given.num_pictured]
    codecs = {path: (load_compressor(path), load_decoder(path)) for path in paths}
    draw_compression(
        [codecs[path] for path in paths], given.pictured_tokens, picture, given.pictures, given.names[: len(paths)]
    )
    more = f" of the first {len(paths)} images" if len(given.names) > len(paths) else ""
    what = "tokens" if given.pictures is None else "image, tokens"
    print(f"{printable(picture)}: {what}, compressed grid, reconstruction, error of each token{more}")


def _check_files(args: argparse.Namespace) -> None:
    """Refuse inputs that are no files, and outputs that are inputs, before anything slow is loaded."""
    if args.tokens is None:
        refuse(args, ("extra_tokens",), "--tokens; towers leave such tokens out by themselves")
        if not args.images:
            raise ConfigError("tokconv compress: needs images, or --tokens FILE")
    else:
        refuse(args, ("encoder",), "images; --tokens need no tower")
        if args.images:
            raise ConfigError(f"--tokens: stands in place of images; leave out {printable(args.images[0])}")
        if args.extra_tokens is not None and args.extra_tokens < 0:
            raise ConfigError(f"--extra-tokens: got {args.extra_tokens}; must be at least 0")
    for path in args.images:
        if not path.is_file():
            raise DataError(f"{path}: there is no such image or folder")
    if args.tokens is not None and not args.tokens.is_file():
        what = "is a folder; name one of its files" if args.tokens.is_dir() else "there is no such file"
        raise DataError(f"--tokens: {args.tokens}: {what}")
    taken = {path.resolve() for path in (*args.images, args.tokens) if path is not None}
    for path in (args.out, args.picture):
        if path is None:
            continue
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

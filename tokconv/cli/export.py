"""`tokconv export`: a checkpoint as a folder, or an exported folder in more formats."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Mapping
from pathlib import Path

from tokconv.errors import ConfigError, printable
from tokconv.exports.artefact import export, read_config
from tokconv.exports.card import compared_line
from tokconv.exports.champions import find_champions, is_export
from tokconv.exports.formats import add_formats, check_formats, copy_export


def run(args: argparse.Namespace) -> None:
    """Export, copy, or add formats. Raises CheckpointError, ConfigError, MissingExtraError."""
    formats = check_formats(args.format)
    if args.last and (args.grid is not None or args.purpose is not None):
        raise ConfigError("--last: champions are exported as they were judged; leave it out")
    champions = find_champions(args.checkpoint, args.grid, args.purpose)
    if len(champions) > 1:
        _copy_all(champions, args, formats)
        return
    (source,) = champions.values()
    if is_export(source):
        if args.out is None and not formats:
            raise ConfigError(f"{source}: is exported already; give --out DIR for a copy, --format for more formats")
        written = source if args.out is None else copy_export(source, args.out)
    elif args.grid is not None or args.purpose is not None:
        raise ConfigError(f"{source}: --grid and --purpose choose among a sweep's champions, and it is no sweep")
    elif args.out is None:
        raise ConfigError("--out: missing; give the folder to write")
    else:
        written = export(source, args.out, epoch="last" if args.last else "best")
    _finish(written, formats)


def _copy_all(champions: Mapping[str, Path], args: argparse.Namespace, formats: Iterable[str]) -> None:
    """Copy the champions of a sweep to `--out`, in the folders that they have there."""
    if args.out is None:
        raise ConfigError(
            f"{args.checkpoint}: has {len(champions)} champions; give --out DIR to copy all of them, or name one, as "
            f"{_first(args.checkpoint, champions)}"
        )
    for name, folder in champions.items():
        print(f"{name}:", end=" ")
        _finish(copy_export(folder, args.out / name), formats)


def _first(sweep: Path, champions: Mapping[str, Path]) -> str:
    grid, purpose = next(iter(champions)).removeprefix("grid-").split("/")
    return f"{str(sweep).partition(':')[0]}:{int(grid)}:{purpose}"


def _finish(written: Path, formats: Iterable[str]) -> None:
    """Add formats to an exported folder, and print what it is and how to load it."""
    print(compared_line(read_config(written)))
    for name, measured in add_formats(written, formats).items():
        error = f"{measured['max_error']:.1e} of a token's deviation"
        print(f"{printable(written / measured['file'])}: {name}, differs from the compressor by at most {error}")
    print(f"{printable(written)}: load it with tokconv.load_compressor({str(written)!r})")

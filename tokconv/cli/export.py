"""`tokconv export`: a checkpoint as a folder, or an exported folder in more formats."""

from __future__ import annotations

import argparse

from tokconv.errors import ConfigError, printable
from tokconv.exports.artefact import export, is_export
from tokconv.exports.formats import add_formats, check_formats, copy_export


def run(args: argparse.Namespace) -> None:
    """Export, copy, or add formats. Raises CheckpointError, ConfigError, MissingExtraError."""
    formats = check_formats(args.format)
    if is_export(args.checkpoint):
        if args.out is None and not formats:
            raise ConfigError(
                f"{args.checkpoint}: is exported already; give --out DIR for a copy, --format for more formats"
            )
        written = args.checkpoint if args.out is None else copy_export(args.checkpoint, args.out)
    elif args.out is None:
        raise ConfigError("--out: missing; give the folder to write")
    else:
        written = export(args.checkpoint, args.out)
    for name, measured in add_formats(written, formats).items():
        error = f"{measured['max_error']:.1e} of a token's deviation"
        print(f"{printable(written / measured['file'])}: {name}, differs from the compressor by at most {error}")
    print(f"{printable(written)}: load it with tokconv.load_compressor({str(written)!r})")

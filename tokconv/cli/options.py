"""What the commands' arguments share."""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from pathlib import Path
from typing import TypeAlias

from tokconv.errors import ConfigError
from tokconv.system.files import local_path

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


OVERRIDES = "config overrides, as in training.epochs=5; recipe=published takes the published values of all other keys"


def command(commands: Commands, name: str, summary: str, *examples: str) -> argparse.ArgumentParser:
    """Add a command and return its parser."""
    return commands.add_parser(
        name,
        help=summary,
        description=summary,
        epilog="example:\n" + "".join(f"  {example}\n" for example in examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def add_overrides(parser: argparse.ArgumentParser, meaning: str = OVERRIDES) -> None:
    """Add overrides, which may stand on both sides of an option."""
    parser.add_argument("overrides", nargs="*", metavar="key=value", help=meaning)
    parser.set_defaults(list="overrides")


def add_device(parser: argparse.ArgumentParser) -> None:
    """Add --device."""
    parser.add_argument("--device", help="cpu, cuda, cuda:1 ... (default: cuda if there is one)")


def add_champion(parser: argparse.ArgumentParser) -> None:
    """Add --grid and --purpose, which choose among the champions of a sweep."""
    group = parser.add_argument_group(
        "if the compressor is a sweep (its name, as demo or demo-001, or its directory)",
        "or SWEEP:GRID:PURPOSE, as demo:6:plug-in",
    )
    group.add_argument("--grid", type=int, metavar="K", help="the champion's grid (default: the only one)")
    group.add_argument(
        "--purpose",
        help="the champion's purpose: fidelity, plug-in or adapted (default: fidelity, or the only one)",
    )


def refuse(args: argparse.Namespace, options: Iterable[str], partner: str) -> None:
    """Raise ConfigError if one of these options was given, because it goes with another one, which was not."""
    for option in options:
        if getattr(args, option) is not None:
            raise ConfigError(f"--{option.replace('_', '-')}: goes with {partner}")


def place(text: str) -> Path | str:
    """Return a store's directory as a path and its URL as text, from which a path would drop a slash."""
    return text if "://" in text else local_path(text)

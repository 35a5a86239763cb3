"""`tokconv stores`: the token stores that are here."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tokconv.cli.options import Commands, command
from tokconv.errors import StoreError, printable
from tokconv.system.files import local_path
from tokconv.system.terminal import data_size

if TYPE_CHECKING:
    from tokconv.store.listing import ListedStore

COLUMNS = ("source", "encoder", "images", "tokens", "size", "path")
RIGHT = ("images", "size")
"""Columns of numbers."""


def add_stores(commands: Commands) -> None:
    parser = command(
        commands,
        "stores",
        "list the token stores that are here: source, encoder, images, tokens, size, path",
        "tokconv stores",
        "tokconv stores /data/stores",
    )
    parser.add_argument(
        "directory",
        nargs="?",
        type=local_path,
        help="a directory of stores, or one store (default: runs/stores, and this machine's copies of stores at URLs)",
    )


def run(args: argparse.Namespace) -> None:
    """Print one line per store. Raises StoreError if there is none."""
    # Help answers without torch, which reading a store needs.
    from tokconv.encoding.job import STORES
    from tokconv.store.listing import list_stores
    from tokconv.store.remote import stores_dir

    # Copies of stores at URLs belong to the whole machine, and are left out where a directory is asked for.
    places: list[Path] = [args.directory] if args.directory is not None else [STORES, stores_dir()]
    stores: list[ListedStore] = []
    unreadable: list[str] = []
    for place in places:
        found, damaged = list_stores(place)
        stores, unreadable = stores + found, unreadable + damaged
    if not stores and not unreadable:
        raise StoreError(f"{places[0]}: holds no token store; tokconv encode data=folder data.root=photos makes one")
    if stores:
        print(_table(stores))
    for sentence in unreadable:
        print(printable(sentence), file=sys.stderr)


def _table(stores: Sequence[ListedStore]) -> str:
    rows = [COLUMNS, *map(_row, stores)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if name in RIGHT else cell.ljust(width)
            for name, cell, width in zip(COLUMNS, row, widths, strict=True)
        ).rstrip()
        for row in rows
    )


def _row(store: ListedStore) -> tuple[str, ...]:
    return (
        printable(store.source),
        printable(store.encoder),
        f"{store.images:,}",
        f"{store.num_tokens} x {store.dim} {store.dtype}",
        data_size(store.num_bytes),
        printable(store.path) + ("" if store.finished else " (unfinished; the same tokconv encode goes on)"),
    )

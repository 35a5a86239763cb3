"""MLflow makes its tables in SQLite once per session: the fifty migrations of an empty database take three CPU seconds,
and most tests that track anything begin with one. Servers and commands in processes of their own make theirs.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import os
import sqlite3
import sys
from contextlib import closing
from pathlib import Path
from types import ModuleType
from typing import Any

MODULE = "mlflow.store.db.utils"


FRESH = "fresh.db"
"""The name of a file whose tables MLflow makes anew."""


def copy_tables(folder: Path) -> None:
    """Let MLflow copy the first database that it made in this session, which is kept in the folder.

    It takes effect when MLflow is imported: most tests do without, and it takes seconds.
    """
    sys.meta_path.insert(0, _Finder(folder / "mlflow.db"))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, first: Path) -> None:
        self._first = first

    def find_spec(self, name: str, path: object = None, target: object = None) -> importlib.machinery.ModuleSpec | None:
        if name != MODULE:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        run = spec.loader.exec_module

        def exec_module(module: ModuleType) -> None:
            run(module)
            module._initialize_tables = _copying(module, self._first)  # type: ignore[attr-defined]

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _copying(module: Any, first: Path) -> Any:
    make = module._initialize_tables

    def initialize(engine: Any) -> None:
        name = Path(str(engine.url.database)).name
        if engine.dialect.name != "sqlite" or name == FRESH or not module._is_empty_database(engine):
            make(engine)
        elif first.exists():
            with closing(sqlite3.connect(first)) as made, engine.connect() as connection:
                made.backup(connection.connection.driver_connection)
        else:
            make(engine)
            # Another process of pytest-xdist may do the same at the same time.
            own = first.with_suffix(f".{os.getpid()}")
            with closing(sqlite3.connect(own)) as made, engine.connect() as connection:
                connection.connection.driver_connection.backup(made)
            own.replace(first)

    return initialize

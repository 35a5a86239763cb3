"""MLflow makes its tables in SQLite once per session: the fifty migrations of an empty database take three CPU seconds,
and most tests that track anything begin with one. Servers and commands in processes of their own make theirs.
"""

from __future__ import annotations

import os
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

from support.faults.when_imported import when_imported

MODULE = "mlflow.store.db.utils"
FRESH = "fresh.db"
"""The name of a file whose tables MLflow makes anew."""


def copy_tables(folder: Path) -> None:
    """Let MLflow copy the first database that it made in this session, which is kept in the folder.

    It takes effect when MLflow is imported: most tests do without, and it takes seconds.
    """

    def change(module: Any) -> None:
        module._initialize_tables = _copying(module, folder / "mlflow.db")

    when_imported(MODULE, change)


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

"""Repairs the artifact places in MLflow's default database after its folder was moved or copied.

MLflow keeps whole URIs of artifacts, `file:///OLD/runs/mlartifacts/...`, for experiments, runs and models, and has no
command that changes them. Left alone, a moved sweep would write its artifacts to the old place, and a copied one into
the original.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from tokconv.errors import SweepError
from tokconv.sweep.tracking.mlflow_connection import ARTIFACTS, DATABASE, database_lock, local_uri
from tokconv.system.uris import FILE, file_uri, path_of

COLUMNS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "source"),
    ("model_versions", "storage_location"),
)
"""Where MLflow keeps URIs of artifacts; older and newer releases may lack some of them."""
LOCK_SECONDS = 60.0


def repair_places(database: Path, root: Path) -> str | None:
    """Let artifacts that lay in another folder before the database was moved or copied be found in this one.

    Args:
        database: MLflow's SQLite file; nothing happens if it does not exist. No other process creates its tables.
        root: the folder that holds `mlartifacts`.

    Returns:
        A sentence about what was changed; None if nothing was.

    Raises:
        SweepError: it is no database, or it cannot be written.
    """
    here = (root / ARTIFACTS).resolve()
    if not database.is_file():
        return None
    try:
        moved = _repair(database, here)
    except sqlite3.Error as error:
        raise SweepError(f"{database}: MLflow's places of artifacts cannot be brought up to date ({error})") from error
    if not moved:
        return None
    return f"MLflow: artifacts that were in {' and '.join(sorted(moved))} are now looked for in {here}"


def repair_default(root: Path) -> str | None:
    """Do the same for the default database of a sweep's `storage`."""
    database = root / DATABASE
    if not database.is_file():
        return None
    with database_lock(local_uri(root)):
        return repair_places(database, root)


def _repair(database: Path, here: Path) -> set[str]:
    """Rewrite the URIs and return the folders that they named."""
    with closing(sqlite3.connect(database, timeout=LOCK_SECONDS)) as tables, tables:
        columns = [(table, column) for table, column in COLUMNS if _has(tables, table, column)]
        if COLUMNS[0] not in columns:
            return set()
        found = tables.execute("SELECT DISTINCT artifact_location FROM experiments").fetchall()
        files = [location for (location,) in found if location and location.startswith(FILE)]
        moved = {place.rpartition("/")[0] for place in files if _is_moved(path_of(place), here, database)}
        for old in moved:
            for table, column in columns:
                tables.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) WHERE substr({column}, 1, ?) = ?",
                    (file_uri(here), len(old) + 1, len(old) + 1, f"{old}/"),
                )
    return {str(path_of(old)) for old in moved}


def _is_moved(place: Path, here: Path, database: Path) -> bool:
    """Return whether an experiment's artifacts belong to this folder, though the database says otherwise.

    Not if several folders share one database on purpose: then the other folder exists and has no database of its own.
    """
    there = place.parent
    if there.name != ARTIFACTS or there == here:
        return False
    if (here / place.name).is_dir():
        return True
    gone = not there.parent.exists() or (there.parent / DATABASE).exists()
    return database.resolve().parent == here.parent and gone


def _has(tables: sqlite3.Connection, table: str, column: str) -> bool:
    return any(row[1] == column for row in tables.execute(f"PRAGMA table_info({table})"))

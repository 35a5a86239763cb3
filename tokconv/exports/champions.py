"""The champions of a sweep as folders, and the one that a sweep, a grid and a purpose mean.

SWEEP/champions/grid-06/fidelity/     an exported compressor
SWEEP/champions/grid-06/plug-in/
SWEEP/champions/grid-06/              an exported compressor itself, in sweeps of a version that knew one purpose
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from tokconv.errors import CheckpointError, suggest
from tokconv.evaluation.purposes import FIDELITY, PURPOSES
from tokconv.exports.registered import REGISTERED_MODEL, fetch_registered
from tokconv.system.files import newest_numbered

SWEEPS = Path("runs") / "sweeps"
"""Where a sweep is looked up by its name."""
GRID = re.compile(r"grid-(\d+)")
REFERENCE = re.compile(r"(?P<sweep>.+?):(?P<grid>\d+)(:(?P<purpose>[^:/]+))?")
Key = tuple[int, str]
"""A grid k and a purpose."""


def grid_folder(grid: int) -> str:
    """Return the name of a grid's folder: `grid-06`."""
    return f"grid-{grid:02d}"


def is_export(path: Path) -> bool:
    """Return whether a directory holds an artefact of any format version; many other tools write a config.json, too."""
    try:
        return "tokconv_format" in json.loads((path / "config.json").read_text(encoding="utf-8"))
    except (ValueError, TypeError, OSError):
        return False


def champions_in(folder: Path) -> dict[Key, Path]:
    """Return the exported champions of a sweep, of its `champions` folder, or of the folder of one grid."""
    places = [folder] if GRID.fullmatch(folder.name) else [*folder.glob("grid-*"), *folder.glob("champions/grid-*")]
    return {key: path for place in sorted(places) for key, path in _of_grid(place)}


def find_champion(place: str | Path, grid: int | None = None, purpose: str | None = None) -> Path:
    """Return the folder of an exported compressor.

    Args:
        place: the folder itself; or a sweep: its directory, its run's name (`demo-001`) or its spec's name, whose
            newest run in runs/sweeps is taken, each also as SWEEP:GRID or SWEEP:GRID:PURPOSE (`demo:6:plug-in`); or a
            folder inside of its `champions`; or a registered model (`models:/tokconv-demo-6x6@champion`).
        grid: k, among the champions of a sweep; None if they have one grid.
        purpose: among those of the grid, as "plug-in"; None takes fidelity if there are several.

    Raises:
        CheckpointError: there is no such compressor, or several fit; the message lists those that there are.
        MissingExtraError: a registered model, and MLflow is not installed.
    """
    folder, fitting, asked = _fitting(place, grid, purpose)
    if len(fitting) <= 1:
        return next(iter(fitting.values()), folder)
    # As in the model registry, where `champion` is the one for fidelity.
    several = {key: path for key, path in fitting.items() if key[1] == FIDELITY} or fitting
    if len(several) == 1:
        return next(iter(several.values()))
    needed = " and ".join(
        name for name, number in (("grid", 0), ("purpose", 1)) if len({key[number] for key in several}) > 1
    )
    example = ":".join([_shortest(folder), *map(str, next(iter(several)))])
    raise CheckpointError(
        f"{folder}: several champions{f' with {asked}' if asked else ''}; give {needed} as well, as in {example}: "
        f"{_listed(fitting)}"
    )


def find_champions(place: str | Path, grid: int | None = None, purpose: str | None = None) -> dict[str, Path]:
    """Return the folders of all exported compressors that fit, by their names: `grid-06/fidelity`.

    Args:
        place, grid, purpose: as for `find_champion`, but None takes all of them.

    Raises:
        CheckpointError: a sweep has no such champion; the message lists those that there are.
    """
    folder, fitting, _ = _fitting(place, grid, purpose)
    return {f"{grid_folder(k)}/{name}": path for (k, name), path in fitting.items()} or {folder.name: folder}


def champions_folder(place: Path) -> Path:
    """Return the folder of a sweep's champions by its name; `place` itself if it is a folder or no sweep."""
    sweep = place if place.is_dir() else _sweep(place)
    return sweep / "champions" if (sweep / "champions").is_dir() else sweep


def _fitting(place: str | Path, grid: int | None, purpose: str | None) -> tuple[Path, dict[Key, Path], str]:
    """Return the folder that is meant, the champions in it that fit, and in words what was asked for.

    There are none if the folder is an export itself or nothing of tokconv's, which its reader tells.
    """
    folder, grid, purpose = _reference(str(place), grid, purpose)
    if is_export(folder):
        return _checked(folder, grid, purpose), {}, ""
    if not folder.is_dir():
        folder = _sweep(folder)
    there = champions_in(folder)
    if not there and not (folder / "events.jsonl").is_file():
        return folder, {}, ""
    if purpose is not None and purpose not in PURPOSES:
        raise CheckpointError(f"purpose: got {purpose!r}; {folder} has {_listed(there)}; {suggest(purpose, PURPOSES)}")
    fitting = {key: path for key, path in there.items() if grid in (None, key[0]) and purpose in (None, key[1])}
    asked = " and ".join(f"{name}={value!r}" for name, value in (("grid", grid), ("purpose", purpose)) if value)
    if not fitting:
        raise CheckpointError(_nothing(folder, there, asked, grid, purpose))
    return folder, fitting, asked


def _reference(place: str, grid: int | None, purpose: str | None) -> tuple[Path, int | None, str | None]:
    """Split SWEEP:GRID:PURPOSE, unless a folder has that name, and fetch a registered model."""
    if place.startswith(REGISTERED_MODEL):
        copy = fetch_registered(place)
        exports = (file.parent for file in copy.rglob("config.json") if is_export(file.parent))
        return next(exports, copy), grid, purpose
    match = REFERENCE.fullmatch(place)
    if match is None or Path(place).exists():
        return Path(place), grid, purpose
    named_grid, named_purpose = int(match["grid"]), match["purpose"] or purpose
    for name, named, given in (("grid", named_grid, grid), ("purpose", named_purpose, purpose)):
        if given not in (None, named):
            raise CheckpointError(f"{place}: names {name} {named}, and {name}={given!r} was given; leave one out")
    return Path(match["sweep"]), named_grid, named_purpose


def _shortest(sweep: Path) -> str:
    """Return the run's name if the sweep is found by it, else its path."""
    return sweep.name if (SWEEPS / sweep.name).is_dir() and (SWEEPS / sweep.name).samefile(sweep) else str(sweep)


def _of_grid(place: Path) -> Iterator[tuple[Key, Path]]:
    match = GRID.fullmatch(place.name)
    if match is None:
        return
    grid = int(match[1])
    if is_export(place):
        yield (grid, FIDELITY), place
    for purpose in PURPOSES:
        if is_export(place / purpose):
            yield (grid, purpose), place / purpose


def _sweep(name: Path) -> Path:
    """Return the directory of a sweep by its name; the name itself if there is none, for the message of its reader."""
    if len(name.parts) != 1:
        return name
    named = SWEEPS / name
    return named if named.is_dir() else newest_numbered(SWEEPS, str(name)) or name


def _nothing(folder: Path, there: Mapping[Key, Path], asked: str, grid: int | None, purpose: str | None) -> str:
    """Return that a sweep has no such champion, why, and which it has."""
    sweep = next((above.parent for above in (folder, folder.parent) if above.name == "champions"), folder)
    known = _reasons(sweep, grid, purpose) if asked else []
    why = f" ({'; '.join(known)})" if known else ""
    hint = "" if known or not (sweep / "events.jsonl").is_file() else f"; tokconv report {sweep.name} shows why"
    return f"{folder}: no champion{f' with {asked}' if asked else ''}{why}; it has {_listed(there)}{hint}"


def _reasons(sweep: Path, grid: int | None, purpose: str | None) -> list[str]:
    """Return why a sweep has no such champions, as far as its report, which may be of any version, says so."""
    try:
        report = json.loads((sweep / "report" / "champions.json").read_text(encoding="utf-8"))
        if grid is not None and str(grid) not in report:
            return [f"its grids are {', '.join(report)}"]
        asked = {int(k): verdict for k, verdict in report.items() if grid in (None, int(k))}
        return list(dict.fromkeys(reason for k in asked for reason in _reasons_of_grid(k, asked[k], purpose)))
    except (OSError, ValueError, TypeError, AttributeError):
        return []


def _reasons_of_grid(grid: int, verdict: Mapping[str, Any], purpose: str | None) -> Iterator[str]:
    # Reports of versions that knew one purpose have its champion here.
    for name, award in verdict.get("champions", {FIDELITY: verdict}).items():
        if purpose in (None, name) and not award.get("export"):
            evidence = award.get("evidence") or {}
            reason = award.get("finding") or evidence.get("summary") or "no complete trial"
            yield f"{name} at {grid}x{grid}: {reason}"
    yield from (reason for reason in verdict.get("left_out", ()) if purpose and reason.startswith(f"{purpose}:"))


def _checked(folder: Path, grid: int | None, purpose: str | None) -> Path:
    """Return an export, if it is what was asked for."""
    description = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    places = (("grid", grid, "compressor", "output_grid_size"), ("purpose", purpose, "evidence", "purpose"))
    for name, asked, section, key in places:
        found = description.get(section) if isinstance(description, Mapping) else None
        own = found.get(key) if isinstance(found, Mapping) else None
        if asked is not None and asked != own:
            raise CheckpointError(f"{folder}: is one compressor, with {name}={own!r}, not {asked!r}; name its sweep")
    return folder


def _listed(champions: Mapping[Key, Path]) -> str:
    grids: dict[int, list[str]] = {}
    for grid, purpose in champions:
        grids.setdefault(grid, []).append(purpose)
    return "; ".join(f"grid {grid}: {', '.join(purposes)}" for grid, purposes in grids.items()) or "exported none"

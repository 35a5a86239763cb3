"""What the judgement of a sweep reads of the spec that the sweep wrote.

A spec is checked before it is written. Checking it again takes pydantic and Hydra, whose imports are most of what
`tokconv status` would do; the judgement needs three values of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokconv.errors import SpecError
from tokconv.sweep.spec.rules import Rules, from_champion, parse_champions, parse_targets

GRID_KEY = "model.compressor.output_grid_size"
MIN_SEEDS = 2
"""The fewest seeds of a confirmation: an interval needs two."""
DEFAULT_SEEDS = 3
"""Seeds of a confirmation if a spec does not say how many."""


@dataclass(frozen=True)
class Outline:
    """The values of a spec that say how many runs there are, and which of them win."""

    trials: int
    confirm_seeds: int
    """Seeds on which a winner is trained again; 0 for none."""
    rules: Rules


def read_outline(path: Path) -> Outline:
    """Return the outline of a spec that a sweep wrote.

    Raises:
        SpecError: the file is missing or damaged, or names figures or purposes that this version does not know.
    """
    import yaml

    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise SpecError(f"{path}: no such spec file") from error
    except (ValueError, yaml.YAMLError) as error:
        raise SpecError(f"{path}: not a valid YAML file ({' '.join(str(error).split())})") from error
    trials, confirm = (tree.get("trials"), tree.get("confirm")) if isinstance(tree, Mapping) else (None, None)
    seeds = confirm.get("seeds", DEFAULT_SEEDS) if isinstance(confirm, Mapping) else _plain_seeds(confirm)
    if not isinstance(trials, int) or not isinstance(seeds, int):
        raise SpecError(f"{path}: not a spec that a sweep wrote; trials and confirm.seeds must be whole numbers")
    return Outline(trials, seeds, _rules(tree))


def _plain_seeds(confirm: Any) -> int | None:
    """Return the seeds of a `confirm` that is no section: `none`, or left out."""
    return {"none": 0, None: DEFAULT_SEEDS}.get(confirm)


def _rules(tree: Mapping[str, Any]) -> Rules:
    older = tree.get("champion")
    champions = parse_champions(tree.get("champions")) if older is None else from_champion(older)
    return Rules(champions, parse_targets("constraints", tree.get("constraints")))

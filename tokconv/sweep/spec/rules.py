"""The rules by which a sweep finds its champions: targets, constraints, and one rule per purpose.

In a spec:

    champions:                       # left out: every purpose that the store can have
      fidelity: {}
      plug-in: {figure: val/auc_token, subject_to: ["val/fvu <= 0.05"]}
    constraints: ["val/fvu <= 0.1"]  # of every champion, and told to the sampler
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tokconv.errors import SpecError, suggest
from tokconv.evaluation.figures import FIGURES, OBJECTIVES
from tokconv.evaluation.purposes import FIDELITY, PURPOSES

FORM = re.compile(r"\s*(\S+)\s*(<=|>=)\s*(\S+)\s*")


@dataclass(frozen=True)
class Target:
    """`metric <= limit` or `metric >= limit`."""

    metric: str
    sign: Literal["<=", ">="]
    limit: float
    origin: str = ""
    """What the limit is, if it is no number of the spec."""

    def met(self, figures: Mapping[str, float]) -> bool:
        """Return whether the figures meet the target."""
        return self.excess(figures) <= 0

    def excess(self, figures: Mapping[str, float]) -> float:
        """Return how far the figure is past the limit: at most 0 if it meets the target, infinite if it is missing."""
        value = figures.get(self.metric)
        if value is None:
            return math.inf
        return value - self.limit if self.sign == "<=" else self.limit - value

    def miss(self, figures: Mapping[str, float]) -> str:
        """Return the target with the figure: `val/fvu <= 0.1 (it has 0.12)`."""
        figure = figures.get(self.metric)
        has = f"it has {'no such figure' if figure is None else f'{figure:.4g}'}"
        return f"{str(self).removesuffix(')')}; {has})" if self.origin else f"{self} ({has})"

    def __str__(self) -> str:
        if self.origin:
            return f"{self.metric} {self.sign} {self.limit:.4g} ({self.origin})"
        return f"{self.metric} {self.sign} {self.limit}"


PUBLISHED = (Target("val/swd", "<=", 0.1), Target("val/cosine", ">=", 0.85))
"""The targets of the published design, which are shown and decide nothing."""
PUBLISHED_NOTE = "window PCA with matched moments meets them before any training"

AXES = ("val/fvu", "val/swd")
STAND_INS = dict.fromkeys(("val/auc_token", "val/auc_token_white", "val/auc_grid"), "val/auc_token_quick")
"""Figure that exists after the last epoch only -> the cheaper one that every epoch has."""


def compared(objectives: Sequence[str]) -> tuple[str, ...]:
    """Return the figures on which early stopping compares trials: fvu, and what stands for the other objectives.

    If no other objective has a figure after every epoch, swd stands for them.
    """
    found = [STAND_INS.get(name, name) for name in objectives if name != "compression_ratio"]
    others = [name for name in dict.fromkeys(found) if name != AXES[0] and FIGURES[name].every_epoch]
    return (AXES[0], *(others or AXES[1:]))


@dataclass(frozen=True)
class Rule:
    """How the champion of one purpose is found."""

    figure: str | None = None
    """The figure that decides; None for the purpose's own."""
    subject_to: tuple[Target, ...] = ()
    """What its candidates must meet besides the sweep's constraints."""

    def plain(self) -> dict[str, Any]:
        """Return the rule as a spec file holds it."""
        named = {} if self.figure is None else {"figure": self.figure}
        return named | ({"subject_to": [str(target) for target in self.subject_to]} if self.subject_to else {})


@dataclass(frozen=True)
class Rules:
    """Everything that decides which trials are champions."""

    champions: Mapping[str, Rule] | None = None
    """Purpose -> rule; None for every purpose that the store can have."""
    constraints: tuple[Target, ...] = ()
    """A trial that breaks one is no candidate."""

    @property
    def purposes(self) -> tuple[str, ...]:
        """The purposes that are wanted, in the order of the registry."""
        return tuple(name for name in PURPOSES if self.champions is None or name in self.champions)

    def rule(self, purpose: str) -> Rule:
        """Return the rule of a purpose."""
        return Rule() if self.champions is None else self.champions[purpose]

    def feasible(self, figures: Mapping[str, float]) -> bool:
        """Return whether figures meet every constraint."""
        return all(target.met(figures) for target in self.constraints)

    @property
    def named(self) -> tuple[str, ...]:
        """Every figure that the rules name, for a check that the store can have them."""
        rules = () if self.champions is None else self.champions.values()
        targets = [*self.constraints, *(target for rule in rules for target in rule.subject_to)]
        figures = [rule.figure for rule in rules if rule.figure is not None]
        return (*figures, *(target.metric for target in targets))


def parse_targets(key: str, raw: Any) -> tuple[Target, ...]:
    """Return the checked targets of a list. Raises SpecError."""
    if raw is None:
        return ()
    if isinstance(raw, str) or not isinstance(raw, Sequence):
        raise SpecError(f"{key}: got {raw!r}; must be a list, as in ['val/fvu <= 0.1']")
    return tuple(found if isinstance(found, Target) else _target(key, found) for found in raw)


def _target(key: str, raw: Any) -> Target:
    match = FORM.fullmatch(raw) if isinstance(raw, str) else None
    if match is None:
        raise SpecError(f"{key}: got {raw!r}; write 'METRIC <= NUMBER' or 'METRIC >= NUMBER'")
    metric, sign, limit = match.groups()
    check_figure(key, metric)
    try:
        number = float(limit)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise SpecError(f"{key}: got {raw!r}; {limit!r} is not a number")
    return Target(metric, "<=" if sign == "<=" else ">=", number)


def check_figure(key: str, name: Any) -> str:
    """Return the name of a figure that may be judged by. Raises SpecError."""
    if name not in OBJECTIVES:
        raise SpecError(f"{key}: got {name!r}; {suggest(str(name), OBJECTIVES)}")
    return str(name)


def parse_champions(raw: Any) -> dict[str, Rule] | None:
    """Return the checked rules of `champions`; None for all purposes. Raises SpecError."""
    if raw is None:
        return None
    if not isinstance(raw, Mapping) or not raw:
        names = ", ".join(PURPOSES)
        raise SpecError(f"champions: got {raw!r}; must be a mapping from purposes ({names}) to rules, or left out")
    for name in raw:
        if name not in PURPOSES:
            raise SpecError(f"champions: got {name!r}; {suggest(str(name), PURPOSES)}")
    return {name: _rule(f"champions.{name}", raw[name]) for name in PURPOSES if name in raw}


def _rule(key: str, raw: Any) -> Rule:
    if isinstance(raw, Rule):
        return raw
    raw = _section(key, raw, ("figure", "subject_to"), ", or {}")
    figure = raw.get("figure")
    return Rule(
        None if figure is None else check_figure(f"{key}.figure", figure),
        parse_targets(f"{key}.subject_to", raw.get("subject_to")),
    )


def _section(key: str, raw: Any, known: Sequence[str], otherwise: str = "") -> Mapping[str, Any]:
    """Return a mapping with known keys; an empty one for None. Raises SpecError."""
    if raw is not None and not isinstance(raw, Mapping):
        raise SpecError(f"{key}: got {raw!r}; must be a mapping with {', '.join(known)}{otherwise}")
    for name in raw or ():
        if name not in known:
            raise SpecError(f"{key}.{name}: unknown; {suggest(str(name), known)}")
    return raw or {}


def from_champion(raw: Any) -> dict[str, Rule]:
    """Return the rules of an older spec's `champion: {minimise: ..., subject_to: [...]}`.

    It knew one purpose. Its published targets are dropped here, because every report shows them.

    Raises:
        SpecError: what is wrong with it.
    """
    raw = _section("champion", raw, ("minimise", "subject_to"))
    figure = check_figure("champion.minimise", raw.get("minimise", "val/fvu"))
    targets = parse_targets("champion.subject_to", raw.get("subject_to"))
    kept = tuple(target for target in targets if target not in PUBLISHED)
    return {FIDELITY: Rule(None if figure == "val/fvu" else figure, kept)}

"""How trials and figures are written: the same in the log, the tables and the page."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import BOUND, shown_in
from tokconv.evaluation.figure import Figure
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.purposes import best_first
from tokconv.sweep.judge.evidence import judged_text
from tokconv.sweep.judge.verdicts import Award, Verdict
from tokconv.sweep.record.events import INVALID, RefusedPoint, TrialRecord
from tokconv.sweep.spec.outline import GRID_KEY

STATES = {
    **{"running": "running", "complete": "complete", "pruned": "stopped early", "failed": "failed"},
    INVALID: "invalid and left out",
}
"""State of a trial -> the words for it."""
INTERVAL_LEGEND = "+-: half of the 95 % interval over the confirmation seeds"


def heading(figure: Figure) -> str:
    """Return the heading of a figure's column: `swd (floor)`."""
    return f"{figure.title} (floor)" if figure.floor else figure.title


def cell(figure: Figure, figures: Mapping[str, float], half_widths: Mapping[str, float] = MappingProxyType({})) -> str:
    """Return a figure with half of its interval and its floor: `0.088 +- 0.004 (0.050)`; "" without the figure."""
    if figure.name not in figures:
        return ""
    width = f" +- {_half_width(figure, half_widths[figure.name])}" if figure.name in half_widths else ""
    floor = f" ({figure.text(figures[figure.floor])})" if figure.floor in figures else ""
    return f"{figure.text(figures[figure.name])}{width}{floor}"


def half_width_cell(figure: Figure, half_widths: Mapping[str, float]) -> str:
    """Return half of a figure's interval: `+-0.004`; "" without an interval."""
    return f"+-{_half_width(figure, half_widths[figure.name])}" if figure.name in half_widths else ""


def legend(figures: Iterable[Figure]) -> str:
    """Return one line that explains these figures."""
    floors = {figure.name: f"; floor: {FIGURES[figure.floor].meaning}" for figure in figures if figure.floor}
    return "; ".join(f"{figure.title} ({figure.explanation}{floors.get(figure.name, '')})" for figure in figures)


def values_text(values: Mapping[str, Any]) -> str:
    """Return searched values on one line, without the grid: `n_critic=3 lambda_gp=1.2`."""
    names = short_names(values)
    return " ".join(f"{name}={number(values[key])}" for key, name in names.items() if key != GRID_KEY)


def short_names(keys: Iterable[str]) -> dict[str, str]:
    """Return key -> the shortest ending of it that no other of the keys has."""
    every = list(keys)
    return {key: _short(key, [other for other in every if other != key]) for key in every}


def event_text(trial: TrialRecord) -> str:
    """Return what became of a trial: `trial 00003 complete after epoch 9: fvu 0.0123, swd 0.088`."""
    name = f"trial {trial.uid}" if trial.confirms is None else f"{trial.uid} (confirms trial {trial.confirms})"
    epoch = trial.epochs_done
    if trial.state == "running":
        begun = f"continues after epoch {epoch}" if epoch else "started"
        return f"{name} {begun}: {trial.ratio:.3g}x {values_text(trial.values)}".rstrip()
    reason = trial.reason if trial.state == "failed" else judged_text(trial.figures)
    return f"{name} {STATES[trial.state]} after epoch {epoch}" + (f": {printable(reason)}" if reason else "")


def refused_text(point: RefusedPoint) -> str:
    """Return why no trial was started for a point: `point 00003 left out, wgan=0 ae=0: loss.weights: all are 0`."""
    return f"point {point.uid} left out, {values_text(point.values)}: {point.reason}"


def states_text(counts: Mapping[str, int]) -> str:
    """Return how many trials are in each state: `19 complete, 4 stopped early`."""
    return ", ".join(f"{count} {STATES[state]}" for state, count in counts.items() if count)


def moment(milliseconds: int) -> str:
    """Return a time in milliseconds since 1970 as this machine's clock shows it: `2025-01-31 18:05`."""
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))


def best_baseline(award: Award, baselines: Mapping[str, Mapping[str, float]]) -> tuple[str, float] | None:
    """Return name and value of the competing baseline that is best at a purpose's figure; None if there is none."""
    criterion = award.criterion
    found = [
        name
        for name, values in baselines.items()
        if criterion.figure in values and all(target.met(values) for target in criterion.entry)
    ]
    names = best_first(criterion.figure, found, baselines)
    return (names[0], baselines[names[0]][criterion.figure]) if names else None


def winning_baselines(verdict: Verdict) -> set[str]:
    """Return the baselines of a grid that win at a figure that decides: the best of each, and all that no champion
    beats."""
    best = (best_baseline(award, verdict.baselines) for award in verdict.awards)
    beaten = (name for award in verdict.awards if award.evidence is not None for name in award.evidence.beaten_by)
    # Raw window PCA wins where matched PCA does; its row would only say that its tokens cannot be read.
    bounds = {entry.name for entry in shown_in(BOUND)}
    return {name for name, _ in filter(None, best)} | (set(beaten) - bounds)


def _half_width(figure: Figure, value: float) -> str:
    return format(value, figure.form.removeprefix("+"))


def _short(key: str, others: list[str]) -> str:
    """Return the shortest ending of a dotted key that no other key has."""
    parts = key.split(".")
    endings = (".".join(parts[-length:]) for length in range(1, len(parts) + 1))
    return next((end for end in endings if not any(f".{other}".endswith(f".{end}") for other in others)), key)


def number(value: Any) -> str:
    """Return a searched value as a table shows it."""
    return f"{value:.3g}" if isinstance(value, float) else printable(value)

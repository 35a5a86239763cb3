"""What won a sweep, in words: at every grid and for every purpose a trained compressor or a closed form."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.purposes import TIE
from tokconv.sweep.judge.evidence import PENDING, PROVEN, UNPROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Award, Verdict
from tokconv.sweep.report.text import best_baseline
from tokconv.sweep.spec.outline import GRID_KEY

WON, LOST, UNDECIDED, OPEN = "won", "lost", "undecided", "open"


@dataclass(frozen=True)
class Outcome:
    """The outcome for one grid and purpose."""

    verdict: Verdict
    award: Award

    @property
    def state(self) -> str:
        """`WON` by a trial, `LOST` to a closed form or to a target, `UNDECIDED` before all seeds, `OPEN` without a
        trial."""
        evidence = self.award.evidence
        if evidence is None:
            return LOST if self.award.refused else OPEN
        return {PENDING: UNDECIDED, UNPROVEN: LOST}.get(evidence.status, WON)

    @property
    def rival(self) -> tuple[str, float] | None:
        """The best baseline and its figure."""
        return best_baseline(self.award, self.verdict.baselines)

    @property
    def winner(self) -> str:
        """Who won, as a table says it; "" if nobody did."""
        evidence = self.award.evidence
        if self.state == WON and evidence is not None:
            return f"trial {evidence.champion.uid}"
        if self.state != LOST or self.rival is None:
            return ""
        # A champion may beat every baseline and still miss a target, or lose a seed.
        return title_of(self.rival[0]) if evidence is None or evidence.beaten_by else ""

    @property
    def words(self) -> str:
        """The result, as a cell of a table: `trained wins, proven (3)`."""
        evidence = self.award.evidence
        if evidence is None:
            return f"{self.winner} wins, no candidate" if self.winner else "no complete trial"
        if self.state == WON:
            return f"trained wins, {evidence.label}"
        return f"{self.winner} wins, trained {evidence.label}" if self.winner else evidence.label

    @property
    def difference(self) -> str:
        """How far the trained compressor is from the best baseline: `30.1 % lower`; "" if either is unknown."""
        figure, evidence = self.award.criterion.figure, self.award.evidence
        if evidence is None or self.rival is None or figure not in evidence.figures or not self.rival[1]:
            return ""
        change = evidence.figures[figure] / self.rival[1] - 1
        return "equal" if abs(change) < TIE else f"{abs(change):.1%} {'lower' if change < 0 else 'higher'}"

    @property
    def place(self) -> str:
        """For what and where: `fidelity at 16x`."""
        return f"{self.award.purpose.name} at {self.verdict.ratio:.3g}x"


def outcomes(sweep: SweepSnapshot) -> list[Outcome]:
    """Return one outcome per grid and purpose, grid by grid."""
    return [Outcome(verdict, award) for verdict in sweep.verdicts for award in verdict.awards]


def headline(sweep: SweepSnapshot) -> str:
    """Return what won, in a few words."""
    found = outcomes(sweep)
    won, lost, undecided = ([one for one in found if one.state == state] for state in (WON, LOST, UNDECIDED))
    if not (won or lost or undecided):
        return "No trial is complete yet."
    waits = f" {len(undecided)} of {len(found)} wait for their confirmations." if undecided else ""
    if not won:
        return (
            "No trained compressor is proven to beat the closed forms." if lost else "Nothing is decided yet."
        ) + waits
    proven = all(one.award.evidence is not None and one.award.evidence.status == PROVEN for one in won)
    how = "beat" if proven else "beat, on one seed,"
    if len(won) == len(found):
        return f"Trained compressors {how} every closed form, at every ratio and for every purpose."
    return f"Trained compressors {how} every closed form in {len(won)} of {len(found)} cases.{waits}"


def findings(sweep: SweepSnapshot) -> list[str]:
    """Return who won what: one line per winner, `matched PCA wins fidelity at 36x, 16x`, those of trials first."""
    named: dict[str, list[Outcome]] = {}
    for one in outcomes(sweep):
        if one.state in (WON, LOST):
            name = "A trained compressor" if one.state == WON else one.winner or "Nothing"
            named.setdefault(name, []).append(one)
    order = sorted(named.items(), key=lambda item: item[1][0].state != WON)
    return [f"{name} wins {_places(own)}." for name, own in order]


def _places(own: Sequence[Outcome]) -> str:
    by_purpose: dict[str, list[str]] = {}
    for one in own:
        by_purpose.setdefault(one.award.purpose.name, []).append(f"{one.verdict.ratio:.3g}x")
    return "; ".join(f"{purpose} at {', '.join(ratios)}" for purpose, ratios in by_purpose.items())


def next_steps(sweep: SweepSnapshot) -> list[tuple[str, str]]:
    """Return what a reader can do now, and the line to copy: of Python or of a shell."""
    steps = []
    held = [
        (one, path)
        for one in outcomes(sweep)
        if one.state == WON and (path := sweep.directory.champion(one.verdict.grid, one.award.purpose.name)).is_dir()
    ]
    if held:
        one, path = held[0]
        others = f" ({len(held) - 1} more in champions/)" if len(held) > 1 else ""
        steps.append((f"Use the champion of {one.place}{others}", f'tokconv.load_compressor("{_place(path)}")'))
    if sweep.resumes != sweep.directory.name:
        return steps
    again = f"tokconv sweep {shlex.quote(_place(sweep.directory.spec))} --resume"
    if sweep.state in ("interrupted", "cut off"):
        steps.append(("Finish the sweep", again))
    if sweep.state == "finished" and any(one.state == LOST for one in outcomes(sweep)):
        steps.append(("Search on, with twice the trials", f"{again} trials={2 * sweep.spec.trials}"))
        if any(one.award.evidence is not None and one.state == LOST for one in outcomes(sweep)):
            steps.append(("Export what is not proven as well, marked as such", f"{again} --allow-unproven"))
    return steps


def advice(sweep: SweepSnapshot) -> list[str]:
    """Return what else may help where closed forms win: each purpose's advice once."""
    lost = {one.award.purpose.name: one.award.purpose for one in outcomes(sweep) if one.state == LOST}
    return [f"For {name}: {purpose.advice}." for name, purpose in lost.items()]


def about(sweep: SweepSnapshot) -> list[tuple[str, str]]:
    """Return what was compressed and searched, as pairs of a term and its description."""
    config, grid = sweep.spec.base_config(), sweep.facts.get("token_grid")
    plan = sweep.facts.get("plan", {})
    images = f"{plan['images']:,} images" if "images" in plan else "images"
    data = " ".join(filter(None, (config.data.source, config.data.root and printable(config.data.root))))
    channels = f" of {sweep.facts['dim']} channels" if "dim" in sweep.facts else ""
    tokens = f", each {grid} x {grid} tokens{channels}" if grid else ""
    keys = [key.split(".", 1)[-1] for key in sweep.spec.search if key != GRID_KEY]
    grids = ", ".join(f"{verdict.ratio:.3g}x ({verdict.name})" for verdict in sweep.verdicts)
    found = [("data", f"{data}: {images}{tokens}")]
    if config.data.source != "features":
        found.append(("encoder", printable(config.model.clip.model_name)))
    return [*found, ("ratios", grids), ("searched", printable(", ".join(keys)) or "nothing")]


def _place(path: Path) -> str:
    """Return a path as one would type it here."""
    here = os.path.relpath(path)
    return printable(path if here.startswith("..") else here)

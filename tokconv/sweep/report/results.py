"""The result of a sweep as files: every trial as a table of data, the champions as JSON, and pictures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.evaluation.figures import JUDGED_ON
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Award, Verdict
from tokconv.sweep.report.kinds import kinds
from tokconv.sweep.spec.rules import PUBLISHED
from tokconv.system.files import atomic_path, write_json

if TYPE_CHECKING:
    import pandas

COLUMNS_WITHOUT_TRIALS = [
    *("uid", "kind", "confirms", "state", "reason", "on_front"),
    *("feasible", "champion", "purposes", "grid", "ratio", "protocol"),
]
OWN_COLUMNS = ("epoch", "epochs", "compression_ratio")
"""Figures that have a column under another name."""


def write_results(
    directory: Path, sweep: SweepSnapshot, *, exported: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None
) -> None:
    """Write results.csv, champions.json, pareto.png and learning_curves.png, each whole or not at all.

    A sweep over several kinds of compressor also gets kinds.png.

    Args:
        directory: created if missing.
        sweep: the published target on `val/swd` is drawn.
        exported: grid -> purpose -> what was exported, with its path as `export`; None leaves champions.json as it is.
    """
    from tokconv.sweep.report import plots

    with atomic_path(directory / "results.csv") as temporary:
        results_frame(sweep).to_csv(temporary, index=False, errors="backslashreplace")
    if exported is not None:
        found = {str(v.grid): _grid_json(v, exported.get(str(v.grid), {}), sweep.protocol) for v in sweep.verdicts}
        write_json(directory / "champions.json", found)
    limit = next(target.limit for target in PUBLISHED if target.metric == "val/swd")
    trials = list(sweep.trials.values())
    figures = {
        "pareto.png": plots.pareto_figure(sweep.verdicts, trials, limit),
        "learning_curves.png": plots.curves_figure(sweep.verdicts, trials),
        **({"kinds.png": plots.kinds_figure(sweep)} if kinds(sweep) else {}),
    }
    for name, figure in figures.items():
        with atomic_path(directory / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def results_frame(sweep: SweepSnapshot) -> pandas.DataFrame:
    """Return one row per trial and confirmation: state, searched values, last figures, epochs and seconds.

    `kind` is search or confirm; `confirms` is the trial that a confirmation repeats. `on_front` is true for a complete
    trial that no other one dominates on the sweep's objectives, false for a dominated one, and empty for all other
    rows; a trial that breaks a constraint is not on the front, and `feasible` is false. `champion` is true for a winner
    of its grid, and `purposes` names what for, as in "fidelity plug-in". Such a row also has its `evidence`, one word
    per purpose, and for each figure that decides the mean over fresh seeds and half of the 95 % interval, as in
    `val/fvu_mean` and `val/fvu_half_width`, at the epochs that the purpose with this figure is judged at (or the first
    purpose that was won); NaN without confirmations.
    """
    import pandas

    front = _on_front(sweep)
    won = {uid: awards for verdict in sweep.verdicts for uid, awards in verdict.champions.items()}
    judged = {award.criterion.figure: None for verdict in sweep.verdicts for award in verdict.awards}
    figures = tuple(dict.fromkeys([*JUDGED_ON, *judged]))
    rows = [
        {
            "uid": trial.uid,
            "kind": "search" if trial.confirms is None else "confirm",
            "confirms": trial.confirms,
            "state": trial.state,
            "reason": trial.reason,
            "on_front": front.get(trial.uid),
            "feasible": sweep.spec.rules.feasible(trial.figures) if trial.state == "complete" else None,
            "champion": trial.uid in won,
            "purposes": " ".join(award.purpose.name for award in won.get(trial.uid, ())),
            **_evidence_columns(won.get(trial.uid, ()), figures),
            "grid": trial.grid,
            "ratio": trial.ratio,
            "protocol": sweep.protocol,
            **trial.values,
            **{name: value for name, value in trial.figures.items() if name not in OWN_COLUMNS},
            "epochs": trial.epochs_done,
            "seconds": trial.seconds,
        }
        for trial in sorted((*sweep.trials.values(), *sweep.confirmations.values()), key=lambda trial: trial.uid)
    ]
    return pandas.DataFrame(rows, columns=None if rows else COLUMNS_WITHOUT_TRIALS)


def _evidence_columns(awards: Sequence[Award], figures: Sequence[str]) -> dict[str, Any]:
    known = [award.evidence for award in awards if award.evidence is not None]
    row: dict[str, Any] = {"evidence": " ".join(evidence.status for evidence in known) or None}
    for name in figures:
        # Awards of a trial may rest on different epochs of the same runs.
        own = next((evidence for evidence in known if evidence.criterion.figure == name), next(iter(known), None))
        if own is None or name not in own.half_widths:
            row |= {f"{name}_mean": math.nan, f"{name}_half_width": math.nan}
        else:
            row |= {f"{name}_mean": own.figures[name], f"{name}_half_width": own.half_widths[name]}
    return row


def _on_front(sweep: SweepSnapshot) -> dict[str, bool]:
    signs = [(objective.metric, -1 if objective.mode == "max" else 1) for objective in sweep.spec.objectives]
    rules, every = sweep.spec.rules, sweep.trials.values()
    complete = [trial for trial in every if trial.state == "complete" and rules.feasible(trial.figures)]
    judged = [trial for trial in complete if all(name in trial.figures for name, _ in signs)]
    points = [[sign * trial.figures[name] for name, sign in signs] for trial in judged]
    return {trial.uid: rank == 0 for trial, rank in zip(judged, ranks(points), strict=True)}


def _grid_json(verdict: Verdict, exported: Mapping[str, Mapping[str, Any]], protocol: int) -> dict[str, Any]:
    return {
        "tokens": verdict.grid**2,
        "compression_ratio": verdict.ratio,
        "protocol": protocol,
        "champions": {
            award.purpose.name: _champion_json(award, exported.get(award.purpose.name, {})) for award in verdict.awards
        },
        "left_out": list(verdict.left_out),
        "complete_trials": len(verdict.trials),
        "front": list(dict.fromkeys(trial.uid for trial in verdict.front)),
        "baselines": {name: dict(figures) for name, figures in verdict.baselines.items()},
    }


def _champion_json(award: Award, exported: Mapping[str, Any]) -> dict[str, Any]:
    champion = award.champion
    return {
        "figure": award.criterion.figure,
        "trial": None if champion is None else champion.uid,
        "finding": award.finding,
        "meets_targets": award.meets_targets,
        "missed": list(award.missed),
        "values": {} if champion is None else champion.values,
        "figures": {} if champion is None else champion.figures,
        "checkpoint": None if champion is None else champion.checkpoint,
        "evidence": None if award.evidence is None else award.evidence.as_dict(),
        "export": exported.get("export"),
    }

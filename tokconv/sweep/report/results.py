"""The result of a sweep as files: every trial as a table of data, the champions as JSON, and two pictures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tokconv.evaluation.figures import JUDGED_ON
from tokconv.sweep.judge.evidence import Evidence
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.system.files import atomic_path, write_json

if TYPE_CHECKING:
    import pandas

COLUMNS_WITHOUT_TRIALS = [
    *("uid", "kind", "confirms", "state", "reason", "on_front", "champion", "grid", "ratio", "protocol")
]
OWN_COLUMNS = ("epoch", "epochs", "compression_ratio")
"""Figures that have a column under another name."""


def write_results(
    directory: Path, sweep: SweepSnapshot, *, exported: Mapping[str, Mapping[str, Any]] | None = None
) -> None:
    """Write results.csv, champions.json, pareto.png and learning_curves.png, each whole or not at all.

    Args:
        directory: created if missing.
        sweep: its spec's target on `val/swd` is drawn.
        exported: grid -> what was exported, with its path as `export`; None leaves champions.json as it is.
    """
    from tokconv.sweep.report import plots

    with atomic_path(directory / "results.csv") as temporary:
        results_frame(sweep).to_csv(temporary, index=False, errors="backslashreplace")
    if exported is not None:
        found = {str(v.grid): _champion_json(v, exported.get(str(v.grid), {}), sweep.protocol) for v in sweep.verdicts}
        write_json(directory / "champions.json", found)
    targets = sweep.spec.champion.subject_to
    limit = next((t.limit for t in targets if t.metric == "val/swd" and t.sign == "<="), None)
    trials = list(sweep.trials.values())
    for name, figure in (
        ("pareto.png", plots.pareto_figure(sweep.verdicts, trials, limit)),
        ("learning_curves.png", plots.curves_figure(sweep.verdicts, trials)),
    ):
        with atomic_path(directory / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def results_frame(sweep: SweepSnapshot) -> pandas.DataFrame:
    """Return one row per trial and confirmation: state, searched values, last figures, epochs and seconds.

    `kind` is search or confirm; `confirms` is the trial that a confirmation repeats. `on_front` is true for a complete
    trial that no other one dominates on the sweep's objectives, false for a dominated one, and empty for all other
    rows. `champion` is true for the winner of its grid. Such a row also has its `evidence` and, for each judged figure,
    the mean over fresh seeds and half of the 95 % interval, as in `val/fvu_mean` and `val/fvu_half_width`.
    """
    import pandas

    front = _on_front(sweep)
    won = {v.evidence.champion.uid: v.evidence for v in sweep.verdicts if v.evidence is not None}
    rows = [
        {
            "uid": trial.uid,
            "kind": "search" if trial.confirms is None else "confirm",
            "confirms": trial.confirms,
            "state": trial.state,
            "reason": trial.reason,
            "on_front": front.get(trial.uid),
            "champion": trial.uid in won,
            **_evidence_columns(won.get(trial.uid)),
            "grid": trial.grid,
            "ratio": trial.ratio,
            "protocol": sweep.protocol,
            **trial.values,
            **{name: value for name, value in trial.figures.items() if name not in OWN_COLUMNS},
            "epochs": int(trial.figures.get("epoch", 0)),
            "seconds": trial.seconds,
        }
        for trial in sorted((*sweep.trials.values(), *sweep.confirmations.values()), key=lambda trial: trial.uid)
    ]
    return pandas.DataFrame(rows, columns=None if rows else COLUMNS_WITHOUT_TRIALS)


def _evidence_columns(evidence: Evidence | None) -> dict[str, Any]:
    row: dict[str, Any] = {"evidence": evidence.status if evidence else None}
    for name in JUDGED_ON:
        width = evidence.half_widths.get(name) if evidence else None
        row[f"{name}_mean"] = evidence.figures[name] if evidence and width is not None else None
        row[f"{name}_half_width"] = width
    return row


def _on_front(sweep: SweepSnapshot) -> dict[str, bool]:
    signs = [(objective.metric, -1 if objective.mode == "max" else 1) for objective in sweep.spec.objectives]
    complete = [trial for trial in sweep.trials.values() if trial.state == "complete"]
    judged = [trial for trial in complete if all(name in trial.figures for name, _ in signs)]
    points = [[sign * trial.figures[name] for name, sign in signs] for trial in judged]
    return {trial.uid: rank == 0 for trial, rank in zip(judged, ranks(points), strict=True)}


def _champion_json(verdict: Verdict, exported: Mapping[str, Any], protocol: int) -> dict[str, Any]:
    champion, evidence = verdict.champion, verdict.evidence
    return {
        "tokens": verdict.grid**2,
        "compression_ratio": verdict.ratio,
        "protocol": protocol,
        "trial": None if champion is None else champion.uid,
        "meets_targets": verdict.meets_targets,
        "missed": list(verdict.missed),
        "values": {} if champion is None else champion.values,
        "figures": {} if champion is None else champion.figures,
        "checkpoint": None if champion is None else champion.checkpoint,
        "evidence": None if evidence is None else evidence.as_dict(),
        "export": exported.get("export"),
        "complete_trials": len(verdict.trials),
        "front": [trial.uid for trial in verdict.front],
        "baselines": {name: dict(figures) for name, figures in verdict.baselines.items()},
    }

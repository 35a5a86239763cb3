"""The result of a sweep: a table for people, a summary in Markdown, files and plots to keep."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from tokconv.evaluation.protocol import JUDGED_ON, PROTOCOL
from tokconv.sweep.judge.evidence import Evidence
from tokconv.sweep.judge.pareto import ranks
from tokconv.sweep.judge.verdicts import Figures, Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.spec.schema import Objective, Spec
from tokconv.system.files import atomic_path, write_json

if TYPE_CHECKING:
    import pandas
    from rich.console import Console
    from rich.table import Table

COMPARED = {"pooling": "pooling", "window_pca": "window PCA"}
"""Baselines in the table, and how they are called there."""
ASCII_HEAD = "\n".join(["    ", "    ", " -- ", *["    "] * 5]) + "\n"
"""rich's box SIMPLE_HEAD, in ASCII: a rule below the head and nothing else."""
COLUMNS = ("grid", "tokens", "ratio", "compressor", "fvu", "gain", "swd (floor)", "cosine", "probe (kept)", "targets")
PROBE = COLUMNS.index("probe (kept)")
WIDE_ONLY = ("cosine", "probe (kept)")
WIDTH = 100
"""Columns of a terminal that the whole table fits, as long as its cells are of the usual length."""
LOG_WIDTH = 120
"""Of a log, which has none of its own: nothing is cut off."""
LEGEND = (
    "fvu: share of the tokens' variance that is lost; gain: share of pooling's fvu that is gone; "
    "swd: distance to real tokens (floor: real against real)."
)
INTERVAL_LEGEND = "+-: half of the 95 % interval over the confirmation seeds, (n) of them; above it their means."
PROBE_LEGEND = "probe: linear classifier on reconstructed tokens, and the share kept of its accuracy on the real ones."


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    is_champion: bool


def print_result(verdicts: Sequence[Verdict], console: Console | None = None) -> None:
    """Print the table with its notes; plain ASCII when standard output is no terminal."""
    from rich.box import Box
    from rich.console import Console

    console = roomy(console or Console())
    table = result_table(verdicts, narrow=console.width < WIDTH)
    if not console.is_terminal:
        table.box = Box(ASCII_HEAD, ascii=True)
    console.print(table)
    for line in (*notes(verdicts), *_legends(verdicts)):
        console.print(line, markup=False, highlight=False, soft_wrap=not console.is_terminal)


def roomy(console: Console) -> Console:
    """The console, wide enough when it is no terminal: rich assumes eighty columns, which cut cells off."""
    if not console.is_terminal:
        console.width = max(console.width, LOG_WIDTH)
    return console


def result_table(verdicts: Sequence[Verdict], *, narrow: bool = False) -> Table:
    """Champion, pooling and window PCA of every grid, a block of rows a grid.

    Args:
        narrow: leave out what a terminal of 80 columns has no room for.
    """
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE_HEAD, title="Best compressor at every grid", title_style="bold", padding=(0, 1, 0, 0))
    shown = [index for index in _shown_columns(verdicts) if not narrow or COLUMNS[index] not in WIDE_ONLY]
    for index in shown:
        table.add_column(COLUMNS[index], justify="left" if COLUMNS[index] == "compressor" else "right", no_wrap=True)
    for verdict in verdicts:
        rows = list(_rows(verdict))
        for row in rows:
            style = "bold" if row.is_champion else "dim"
            table.add_row(*(row.cells[i] for i in shown), style=style, end_section=row is rows[-1])
    return table


def summary_markdown(verdicts: Sequence[Verdict]) -> str:
    """The same table and notes in Markdown."""
    shown = _shown_columns(verdicts)
    lines = [
        "| " + " | ".join(COLUMNS[i] for i in shown) + " |",
        "| " + " | ".join("---" if COLUMNS[i] == "compressor" else "---:" for i in shown) + " |",
    ]
    for verdict in verdicts:
        for row in _rows(verdict):
            cells = [row.cells[i] for i in shown]
            lines.append(
                "| " + " | ".join([f"**{c}**" if c else c for c in cells] if row.is_champion else cells) + " |"
            )
    lines += ["", *(f"- {note}" for note in notes(verdicts))]
    return "\n".join([*lines, "", " ".join(_legends(verdicts)), ""])


def notes(verdicts: Sequence[Verdict]) -> list[str]:
    """What the table's `nearest`, `missed`, `unproven` and `none finished` mean, a line each."""
    found = []
    for verdict in verdicts:
        name = f"{verdict.grid}x{verdict.grid}"
        if verdict.champion is None:
            found.append(f"{name}: no trial finished at this grid")
        elif verdict.missed:
            found.append(
                f"{name}: {'nearest' if verdict.nearest else 'in the mean'}, misses {', '.join(verdict.missed)}"
            )
        if verdict.evidence is not None and verdict.evidence.reasons:
            found.append(f"{name}: {verdict.evidence.summary}")
    return found


def write_results(
    directory: Path,
    verdicts: Sequence[Verdict],
    trials: Sequence[TrialRecord],
    spec: Spec,
    *,
    confirmations: Sequence[TrialRecord] = (),
    exported: Mapping[str, Mapping[str, Any]] | None = MappingProxyType({}),
) -> None:
    """Write results.csv, champions.json, pareto.png and learning_curves.png, each whole or not at all.

    Args:
        directory: created when missing.
        trials: all of the search's, in any state.
        confirmations: in results.csv, too.
        exported: grid -> what was exported, with its path as `export`; None leaves champions.json as it is.
        spec: its objectives decide `on_front` in results.csv; its target on `val/swd` is drawn.
    """
    from tokconv.sweep.report import plots

    with atomic_path(directory / "results.csv") as temporary:
        results_frame([*trials, *confirmations], spec.objectives, verdicts).to_csv(temporary, index=False)
    if exported is not None:
        found = {str(v.grid): _champion_json(v, exported.get(str(v.grid), {})) for v in verdicts}
        write_json(directory / "champions.json", found)
    limit = next((t.limit for t in spec.champion.subject_to if t.metric == "val/swd" and t.sign == "<="), None)
    for name, figure in (
        ("pareto.png", plots.pareto_figure(verdicts, trials, limit)),
        ("learning_curves.png", plots.curves_figure(verdicts, trials)),
    ):
        with atomic_path(directory / name) as temporary:
            figure.savefig(temporary, format="png", dpi=150)


def results_frame(
    trials: Sequence[TrialRecord], objectives: Sequence[Objective], verdicts: Sequence[Verdict]
) -> pandas.DataFrame:
    """One row a trial: state, searched values, last figures, epochs and seconds.

    `kind` is search or confirm, `confirms` the trial that a confirmation repeats. `on_front` is true where a complete
    trial is not dominated on the sweep's objectives by another one, false where it is, and empty for every other trial
    and for confirmations. `champion` is true for the winner of its grid; such a row also has what is known of it over
    fresh seeds: `evidence`, and of each figure that proves something its mean and half of its 95 % interval, as in
    `val/fvu_mean` and `val/fvu_half_width`.
    """
    import pandas

    front = _on_front(trials, objectives)
    won = {verdict.champion.uid: verdict for verdict in verdicts if verdict.champion is not None}
    grids = {verdict.ratio: verdict.grid for verdict in verdicts}
    rows = [
        {
            "uid": trial.uid,
            "kind": "search" if trial.confirms is None else "confirm",
            "confirms": trial.confirms,
            "state": trial.state,
            "reason": trial.reason,
            "on_front": front.get(trial.uid),
            "champion": trial.uid in won,
            **_confirmed(won.get(trial.uid)),
            "grid": grids.get(trial.ratio),
            "ratio": trial.ratio,
            "protocol": PROTOCOL,
            **trial.values,
            **{name: value for name, value in trial.figures.items() if name not in _REPEATED},
            "epochs": int(trial.figures.get("epoch", 0)),
            "seconds": trial.seconds,
        }
        for trial in sorted(trials, key=lambda trial: trial.uid)
    ]
    return pandas.DataFrame(rows, columns=None if rows else COLUMNS_OF_NONE)


COLUMNS_OF_NONE = ["uid", "kind", "confirms", "state", "reason", "on_front", "champion", "grid", "ratio", "protocol"]
"""Of a table without a row."""


def _confirmed(verdict: Verdict | None) -> dict[str, Any]:
    evidence = None if verdict is None else verdict.evidence
    known = evidence is not None and evidence.half_widths
    row: dict[str, Any] = {"evidence": evidence.status if evidence else None}
    for name in JUDGED_ON:
        row[f"{name}_mean"] = evidence.figures[name] if evidence and known else None
        row[f"{name}_half_width"] = evidence.half_widths[name] if evidence and known else None
    return row


_REPEATED = ("epoch", "epochs", "compression_ratio")
"""Figures that stand in a column of their own."""


def _on_front(trials: Sequence[TrialRecord], objectives: Sequence[Objective]) -> dict[str, bool]:
    judged = [
        trial
        for trial in trials
        if trial.state == "complete"
        and trial.confirms is None
        and all(objective.metric in trial.figures for objective in objectives)
    ]
    signs = [-1 if objective.mode == "max" else 1 for objective in objectives]
    points = [
        [sign * trial.figures[objective.metric] for sign, objective in zip(signs, objectives, strict=True)]
        for trial in judged
    ]
    return {trial.uid: rank == 0 for trial, rank in zip(judged, ranks(points), strict=True)}


def _champion_json(verdict: Verdict, exported: Mapping[str, Any]) -> dict[str, Any]:
    champion, evidence = verdict.champion, verdict.evidence
    return {
        "tokens": verdict.grid**2,
        "compression_ratio": verdict.ratio,
        "protocol": PROTOCOL,
        "trial": None if champion is None else champion.uid,
        "meets_targets": verdict.meets_targets,
        "missed": list(verdict.missed),
        "values": {} if champion is None else champion.values,
        "figures": {} if champion is None else champion.figures,
        "checkpoint": None if champion is None else champion.checkpoint,
        "evidence": None if champion is None or evidence is None else evidence.as_dict(champion.uid),
        "export": exported.get("export"),
        "complete_trials": len(verdict.trials),
        "front": [trial.uid for trial in verdict.front],
        "baselines": {name: dict(figures) for name, figures in verdict.baselines.items()},
    }


def _rows(verdict: Verdict) -> Iterator[_Row]:
    place = (f"{verdict.grid}x{verdict.grid}", str(verdict.grid**2), f"{verdict.ratio:.3g}x")
    champion, evidence = verdict.champion, verdict.evidence
    if champion is None or evidence is None:
        yield _Row((*place, "none finished", *[""] * 6), is_champion=True)
    else:
        targets = "yes" if verdict.meets_targets else "nearest" if verdict.nearest else "missed"
        yield _Row((*place, f"trial {champion.uid}", *_cells(evidence.figures), targets), is_champion=True)
        yield _Row(("", "", "", evidence.label, *_half_widths(evidence), ""), is_champion=False)
    for name, shown in COMPARED.items():
        if name in verdict.baselines:
            yield _Row(("", "", "", shown, *_cells(verdict.baselines[name]), ""), is_champion=False)


def _cells(figures: Figures) -> tuple[str, ...]:
    def text(name: str, form: str, around: str = "{}") -> str:
        return around.format(format(figures[name], form)) if name in figures else ""

    return (
        text("val/fvu", ".4f"),
        text("val/gain", ".0%"),
        text("val/swd", ".3f") + text("val/swd_floor", ".3f", " ({})"),
        text("val/cosine", ".3f"),
        text("val/probe_accuracy", ".1%") + text("val/probe_kept", ".1%", " ({})"),
    )


def _half_widths(evidence: Evidence) -> tuple[str, ...]:
    """Below each figure of the champion, half of its interval."""
    own = {name: width for name, width in evidence.half_widths.items() if name in _SPREAD}
    return tuple(f"+-{cell}" if cell else "" for cell in _cells(own))


_SPREAD = ("val/fvu", "val/gain", "val/swd", "val/cosine", "val/probe_accuracy")
"""Figures whose interval is shown; a floor has none, and what is kept of the probe moves with its accuracy."""


def _shown_columns(verdicts: Iterable[Verdict]) -> list[int]:
    """All columns, without the probe's when the images have no labels."""
    probed = any(row.cells[PROBE] for verdict in verdicts for row in _rows(verdict))
    return [index for index in range(len(COLUMNS)) if index != PROBE or probed]


def _legends(verdicts: Sequence[Verdict]) -> list[str]:
    lines = [LEGEND]
    if any(verdict.evidence is not None and verdict.evidence.half_widths for verdict in verdicts):
        lines.append(INTERVAL_LEGEND)
    if PROBE in _shown_columns(verdicts):
        lines.append(PROBE_LEGEND)
    return [*lines, f"evaluation protocol {PROTOCOL}"]

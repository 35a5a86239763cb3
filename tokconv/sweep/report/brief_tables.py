"""The tables that fit a small terminal: what runs, and the champions so far."""

from __future__ import annotations

from collections.abc import Sequence

from rich.table import Table
from rich.text import Text

from tokconv.evaluation.baselines.registry import title_of
from tokconv.evaluation.figures import FIGURES, JUDGED_ON
from tokconv.sweep.judge.evidence import PENDING, Figures
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.text import best_baseline, values_text


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, header_style="dim")
    for column in columns:
        is_text = column in ("values", "purpose", "figure")
        fills = column == "values"
        table.add_column(column, justify="left" if is_text else "right", no_wrap=True, ratio=1 if fills else None)
    return table


def running_table(trials: Sequence[TrialRecord], epochs: int) -> Table:
    """Return one row per running trial: how far it is, its figures and its searched values."""
    figures = [FIGURES[name] for name in JUDGED_ON]
    table = _table("running", "trial", "ratio", "epoch", *(figure.title for figure in figures), "values")
    for trial in trials:
        table.add_row(
            trial.uid,
            f"{trial.ratio:.3g}x",
            f"{trial.epochs_done}/{epochs}",
            *(figure.text(trial.figures.get(figure.name)) or "-" for figure in figures),
            Text(values_text(trial.values), overflow="ellipsis"),
        )
    return table


def best_table(verdicts: list[Verdict], *, proof: bool = False) -> Table:
    """Return one row per grid and purpose: the champion so far, with the best baseline at the purpose's own figure.

    Args:
        verdicts: one per grid.
        proof: the last column says how far the champion is proven, and its figure is the mean over the confirmations;
            without it, the last column is its fvu.
    """
    fvu = FIGURES["val/fvu"]
    # Has to fit 80 columns.
    columns = ("grid", "ratio", "purpose", "figure", "champion", "best baseline", "evidence" if proof else fvu.title)
    of_seeds = proof and any(
        award.evidence is not None and award.evidence.half_widths for verdict in verdicts for award in verdict.awards
    )
    title = "champions, with means over their confirmations" if of_seeds else "best so far per grid and purpose"
    table = _table(title, *columns)
    for verdict in verdicts:
        for number, award in enumerate(verdict.awards):
            evidence = award.evidence
            own: Figures = {} if evidence is None else evidence.figures
            figure, rival = FIGURES[award.criterion.figure], best_baseline(award, verdict.baselines)
            status = "-" if evidence is None else evidence.label if evidence.status == PENDING else evidence.status
            table.add_row(
                *((verdict.name, f"{verdict.ratio:.3g}x") if not number else ("", "")),
                award.purpose.name,
                figure.title,
                Text(figure.text(own.get(figure.name)) or "-", style="bold"),
                "-" if rival is None else f"{title_of(rival[0])} {figure.text(rival[1])}",
                status if proof else fvu.text(own.get(fvu.name)) or "-",
            )
    return table

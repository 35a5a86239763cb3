"""The page's figures over epochs: learning curves beside the baselines, and what early stopping saved."""

from __future__ import annotations

import plotly.graph_objects as go

from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.page_axes import set_axes
from tokconv.sweep.report.page_figures import FVU, PANEL_HEIGHT, SWD, Panels, known_baselines, visible_baselines
from tokconv.sweep.report.plots import CHAMPION, CURVES, LOWEST, STOPPED, TRIAL, better_title, floor_of, shown

AUC_QUICK = "val/auc_token_quick"


def curve_metrics(sweep: SweepSnapshot) -> list[str]:
    """Return the figures whose curves are shown: fvu, and those of likeness that trials have by epoch."""
    runs = [trial.history for trial in sweep.trials.values()]
    return [FVU, *(name for name in (SWD, AUC_QUICK) if any(name in row for run in runs for row in run))]


def curves_panels(sweep: SweepSnapshot, metric: str) -> Panels:
    """Return a figure by epoch, with baselines as level lines; all trials of one state are one line with gaps."""
    panels, epochs = [], sweep.epochs
    for verdict in sweep.verdicts:
        figure = go.Figure()
        for entry in known_baselines([verdict]):
            own = verdict.baselines[entry.name]
            if metric in own and entry.name in visible_baselines([verdict]):
                figure.add_scatter(
                    x=[0, epochs],
                    y=[shown(own, metric)] * 2,
                    name=entry.title,
                    mode="lines",
                    line={"color": entry.color, "width": 1.5, "dash": "dot"},
                    hovertemplate=f"{entry.title}: %{{y:.4f}}<extra></extra>",
                )
        for state, (label, color, _) in CURVES.items():
            own_trials = [t for t in sweep.trials.values() if t.state == state and t.grid == verdict.grid and t.history]
            points = [point for trial in own_trials for point in (*_curve(trial, metric), (None, None, None))]
            if points:
                figure.add_scatter(
                    x=[epoch for epoch, _, _ in points],
                    y=[value for _, value, _ in points],
                    text=[uid for _, _, uid in points],
                    name=label,
                    mode="lines+markers",
                    opacity=0.7,
                    line={"color": color, "width": 1},
                    marker={"size": 3, "color": color},
                    hovertemplate="trial %{text}, epoch %{x}: %{y:.4f}<extra></extra>",
                )
        if verdict.champion is not None:
            curve = _curve(verdict.champion, metric)
            figure.add_scatter(
                x=[epoch for epoch, _, _ in curve],
                y=[value for _, value, _ in curve],
                name="best trial",
                mode="lines+markers",
                line={"color": CHAMPION, "width": 2.5},
                hovertemplate=f"trial {verdict.champion.uid}, epoch %{{x}}: %{{y:.4f}}<extra></extra>",
            )
        floor = floor_of(verdict, metric) if FIGURES[metric].floor else None
        if floor is not None:
            figure.add_hline(y=max(floor, LOWEST), line={"color": STOPPED, "dash": "dash", "width": 1})
        set_axes(figure, x="integer", y="linear" if metric == AUC_QUICK else "log")
        figure.update_xaxes(title="epoch")
        figure.update_yaxes(title=better_title(metric))
        panels.append((verdict, figure.update_layout(height=PANEL_HEIGHT)))
    return panels


def savings_figure(sweep: SweepSnapshot) -> go.Figure:
    """Return the epochs of every grid's trials: those that ran, and those that early stopping saved."""
    figure = go.Figure()
    names, run, saved = [], [], []
    for verdict in sweep.verdicts:
        own = [trial for trial in sweep.trials.values() if trial.grid == verdict.grid]
        names.append(f"{verdict.grid} x {verdict.grid}")
        run.append(sum(trial.epochs_done for trial in own))
        saved.append(sum(sweep.epochs - trial.epochs_done for trial in own if trial.state == "pruned"))
    figure.add_bar(x=names, y=run, name="run", marker={"color": TRIAL})
    figure.add_bar(
        x=names, y=saved, name="saved by early stopping", marker={"color": STOPPED, "pattern": {"shape": "/"}}
    )
    figure.update_layout(barmode="stack", height=PANEL_HEIGHT)
    figure.update_yaxes(title="epochs")
    return figure


def _curve(trial: TrialRecord, metric: str) -> list[tuple[float, float, str]]:
    return [(row["epoch"], shown(row, metric), trial.uid) for row in trial.history if metric in row]

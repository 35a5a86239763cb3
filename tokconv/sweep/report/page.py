"""The page of a sweep: one HTML file, made from the sweep's directory alone, that needs no network."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from jinja2.utils import htmlsafe_json_dumps
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tokconv.evaluation.figures import FIGURES, VLM_KL
from tokconv.exports.answers.table import PLOT as ANSWERS_PLOT
from tokconv.exports.answers.table import TEXT as ANSWERS_TEXT
from tokconv.sweep.judge.evidence import PROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.report import outcome
from tokconv.sweep.report import page_figures as draw
from tokconv.sweep.report import page_keys as keys
from tokconv.sweep.report import page_tables as tables
from tokconv.sweep.report.importance import MIN_TRIALS, decisive, first_trial_notes, importance, judged_figures
from tokconv.sweep.report.kinds import kinds, readability
from tokconv.sweep.report.page_curves import curve_metrics, curves_panels, savings_figure
from tokconv.sweep.report.page_figures import Panels
from tokconv.sweep.report.page_legend import Entry, legend_of
from tokconv.sweep.report.table import headings, notes, result_rows, rules_text, shown_figures
from tokconv.sweep.report.text import moment, states_text
from tokconv.sweep.spec.rules import compared
from tokconv.system.files import write_text

MARGIN = {"l": 64, "r": 16, "t": 14, "b": 56}
"""Pixels around a plot, for its ticks and the names of its axes."""
TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class _Figure:
    key: str
    plot: go.Figure
    caption: str = ""
    least_width: int = 0
    """Pixels; a narrower screen scrolls it sideways."""


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    text: str
    figures: tuple[_Figure, ...]
    table: tuple[list[str], list[list[str]]] | None = None
    """Headings and rows."""
    panels: bool = False
    """Whether the figures stand side by side where there is room."""

    @property
    def legend(self) -> list[Entry]:
        return legend_of(figure.plot for figure in self.figures)


def write_page(sweep: SweepSnapshot, path: Path) -> Path:
    """Write the page of a sweep, finished or not, and return its path.

    Args:
        sweep: from `tokconv.sweep.judge.snapshot.read_sweep`.
        path: the HTML file, replaced at once.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, page(sweep))
    return path


def page(sweep: SweepSnapshot) -> str:
    """Return the HTML. Everything that comes from the sweep is escaped."""
    sections = list(_sections(sweep))
    figures = {figure.key: _plain(figure.plot) for section in sections for figure in section.figures}
    shown, pictures, cards = shown_figures(sweep.verdicts), list(_pictures(sweep)), list(_cards(sweep))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sweep=sweep,
        when=f"begun {moment(sweep.started)}, last event {moment(sweep.last)}",
        headline=outcome.headline(sweep),
        findings=outcome.findings(sweep),
        advice=outcome.advice(sweep),
        counts=states_text(sweep.states) or "none",
        about=outcome.about(sweep),
        steps=outcome.next_steps(sweep),
        outcome_headings=tables.OUTCOMES,
        outcomes=tables.outcome_rows(sweep),
        figure_headings=headings(shown),
        figure_rows=[row for verdict in sweep.verdicts for row in result_rows(verdict, shown, every=True)],
        terms=tables.terms(shown),
        rules=rules_text(sweep),
        notes=[*notes(sweep.verdicts), *first_trial_notes(sweep)],
        sections=sections,
        dynamic=_dynamic(sweep),
        answers=_measured(sweep.directory.answers / ANSWERS_TEXT, sweep.directory.answers / ANSWERS_PLOT),
        cost=tables.cost(sweep),
        pictures=pictures,
        cards=cards,
        columns=tables.trial_headings(sweep),
        rows=tables.trial_rows(sweep),
        figures=htmlsafe_json_dumps(figures, allow_nan=False, separators=(",", ":")),
        plotly=Markup(get_plotlyjs()),
    )


def _sections(sweep: SweepSnapshot) -> Iterator[_Section]:
    yield _Section(
        "front",
        "Error at every ratio",
        "Every point is a trial; stars are the best ones, with the 95 % interval over fresh seeds, full if they have "
        "won. Dotted lines are closed forms, which need no training. Trials that were stopped early or failed compete "
        "with nothing. Click an entry of the legend to show or hide it.",
        (
            _Figure("front", draw.front_figure(sweep)),
            *([_Figure("front-kl", draw.front_figure(sweep, VLM_KL))] if _has(sweep, VLM_KL) else []),
        ),
    )
    yield _Section(
        "likeness",
        "Error against likeness to tokens",
        _likeness_text(sweep),
        _panels("likeness", draw.likeness_panels(sweep)),
        panels=True,
    )
    if kinds(sweep):
        yield _kinds(sweep)
    yield _keys(sweep)
    yield _importance(sweep)
    metrics = curve_metrics(sweep)
    titles = " and ".join(FIGURES[name].title for name in metrics)
    last = [FIGURES[name].title for name in ("val/auc_token",) if _has(sweep, name)]
    after = f" {' and '.join(last)} exists after the last epoch only; it is in the table of all trials." if last else ""
    yield _Section(
        "curves",
        "Learning curves",
        f"{titles} of every trial by epoch, up to {sweep.epochs} epochs; epoch 0 is the closed form that a trial "
        f"starts at. Dotted lines are the closed forms, the dashed line is the floor.{after}",
        tuple(
            _Figure(
                f"curves-{metric.split('/')[-1]}-{verdict.grid}",
                plot,
                f"{FIGURES[metric].title}, {draw.title(verdict)}",
            )
            for pairs in zip(*(curves_panels(sweep, metric) for metric in metrics), strict=True)
            for metric, (verdict, plot) in zip(metrics, pairs, strict=True)
        ),
        panels=True,
    )
    if sweep.spec.early_stopping is not None:
        rule = sweep.spec.early_stopping
        figures = " and ".join(FIGURES[name].title for name in compared(sweep.spec.judged_by))
        yield _Section(
            "savings",
            "Early stopping",
            f"Successive halving within each grid on {figures} together: at epoch {rule.min_epochs} and at later "
            f"rungs, 1 of {rule.reduction} trials goes on. tokconv replay reports what this may have missed.",
            (_Figure("savings", savings_figure(sweep)),),
        )


def _panels(key: str, panels: Panels) -> tuple[_Figure, ...]:
    return tuple(_Figure(f"{key}-{verdict.grid}", plot, draw.title(verdict)) for verdict, plot in panels)


def _has(sweep: SweepSnapshot, figure: str) -> bool:
    return any(figure in trial.figures for trial in sweep.trials.values())


def _likeness_text(sweep: SweepSnapshot) -> str:
    likeness = FIGURES[sweep.verdicts[0].likeness]
    return (
        "Low is good on both axes: the compressed tokens keep the content (fvu) and look like real tokens "
        f"({likeness.title}: {likeness.meaning}). The dashed line is the floor, the {likeness.title} between two "
        "samples of real tokens. The line through the trials is their front: nothing is better on both axes."
    )


def _kinds(sweep: SweepSnapshot) -> _Section:
    figure = FIGURES[readability(sweep.verdicts)]
    return _Section(
        "kinds",
        "The front of each kind of compressor",
        f"Fidelity (fvu) against readability ({figure.title}: {figure.meaning}). The line of a kind joins the points "
        "that no other one of its kind dominates; a trial counts as it ended and with every best epoch that it kept. "
        "Baselines are grey.",
        _panels("kinds", draw.kinds_panels(sweep)),
        (tables.kind_headings(sweep), tables.kind_rows(sweep)),
        panels=True,
    )


def _keys(sweep: SweepSnapshot) -> _Section:
    figures, few = [], []
    for verdict in sweep.verdicts:
        plot = keys.parallel_figure(sweep, verdict)
        if plot is None:
            few.append(draw.title(verdict))
            continue
        values = sorted(trial.figures["val/fvu"] for trial in verdict.trials)
        least, most = (FIGURES["val/fvu"].text(value) for value in (values[0], values[-1]))
        caption = f"{draw.title(verdict)}: {len(values)} complete trials, fvu {least} (orange) to {most} (grey)"
        width = keys.AXIS_WIDTH * len(plot.data[0].dimensions)
        figures.append(_Figure(f"parallel-{verdict.grid}", plot, caption, width))
    text = (
        "The searched keys of every complete trial and what it reached. Every line is a trial; the more orange it "
        "is, the less variance it lost. Drag along an axis to select trials."
    )
    if few:
        text += f" Fewer than two complete trials, and so no picture: {', '.join(few)}."
    return _Section("keys", "Searched keys", text, tuple(figures))


def _importance(sweep: SweepSnapshot) -> _Section:
    everything = tuple(trial for verdict in sweep.verdicts for trial in verdict.trials)
    groups = {"all": ("all grids", everything)}
    if len(sweep.verdicts) > 1:
        groups |= {str(verdict.grid): (verdict.name, verdict.trials) for verdict in sweep.verdicts}
    figures, few = [], []
    for name, (title, trials) in groups.items():
        found = {metric: importance(trials, sweep.spec.search, metric) for metric in judged_figures(sweep)}
        found = {metric: shares for metric, shares in found.items() if shares}
        if found:
            caption = f"{title}, {len(trials)} trials: {decisive(found)}"
            figures.append(_Figure(f"importance-{name}", keys.importance_figure(found), caption))
        else:
            few.append(f"{title} ({len(trials)})")
    text = (
        "How much the best tenth of the complete trials differs from all of them in each key (PED-ANOVA). Over all "
        "grids, trials are compared by their rank within their own. This is an association among the trials that were "
        "run, not a cause. The figures are the sweep's objectives and those by which its champions are found."
    )
    if few:
        text += f" Fewer than {MIN_TRIALS} complete trials are left out: {', '.join(few)}."
    return _Section("importance", "Which keys matter", text, tuple(figures))


def _dynamic(sweep: SweepSnapshot) -> dict[str, str] | None:
    """Return what choosing a grid per image saves, as text and picture; None if it was not measured."""
    picture = next((sweep.directory.champions / "dynamic").glob("*.png"), None)
    return _measured(sweep.directory.report / "dynamic.txt", picture)


def _measured(text: Path, picture: Path | None) -> dict[str, str] | None:
    """Return a text and its picture, which may be missing; None without the text."""
    if not text.is_file():
        return None
    data = picture.read_bytes() if picture is not None and picture.is_file() else b""
    return {"text": text.read_text(encoding="utf-8"), "data": base64.b64encode(data).decode()}


def _pictures(sweep: SweepSnapshot) -> Iterator[dict[str, str]]:
    for verdict in sweep.verdicts:
        for uid, awards in verdict.champions.items():
            path = sweep.directory.artifacts(uid) / "reconstruction.png"
            if path.is_file():
                purposes = ", ".join(award.purpose.name for award in awards)
                yield {
                    "title": f"{draw.title(verdict)}, {purposes}: trial {uid}",
                    "data": base64.b64encode(path.read_bytes()).decode(),
                }


def _cards(sweep: SweepSnapshot) -> Iterator[dict[str, Any]]:
    # This preset escapes HTML in the text.
    markdown = MarkdownIt("js-default")
    for verdict in sweep.verdicts:
        for award in verdict.awards:
            path = sweep.directory.champion(verdict.grid, award.purpose.name) / "README.md"
            if not path.is_file():
                continue
            text = path.read_text(encoding="utf-8")
            if text.startswith("---\n"):
                # The Hugging Face hub reads this part; Markdown would turn it into a heading.
                text = text.partition("\n---\n")[2]
            html = markdown.render(text.replace("\n# ", "\n#### ", 1))
            proven = "" if award.evidence is None or award.evidence.status == PROVEN else ", not proven"
            title = f"{verdict.grid} x {verdict.grid}, {award.purpose.name}{proven}"
            yield {"title": title, "html": Markup(html)}


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Return data and layout without plotly's templates, which take 7 KB per figure."""
    # Parallel coordinates have the names of their axes above them, half of one on either side.
    margin = {"l": 64, "r": 64, "t": 48, "b": 24} if figure.data[0].type == "parcoords" else MARGIN
    figure.update_layout(template="none", margin=margin, showlegend=False)
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain

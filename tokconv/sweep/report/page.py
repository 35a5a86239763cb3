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

from tokconv.evaluation.figures import FIGURES
from tokconv.sweep.judge.evidence import PROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.report import page_figures as draw
from tokconv.sweep.report import page_keys as keys
from tokconv.sweep.report import page_tables as tables
from tokconv.sweep.report.importance import MIN_TRIALS, decisive, first_trial_notes, importance, judged_figures
from tokconv.sweep.report.kinds import kinds, readability
from tokconv.sweep.report.table import notes, shown_figures
from tokconv.sweep.report.text import INTERVAL_LEGEND, legend, moment, states_text
from tokconv.sweep.spec.rules import compared
from tokconv.system.files import write_text

TEMPLATE = Path(__file__).with_name("page.html")


@dataclass(frozen=True)
class _Figure:
    key: str
    plot: go.Figure
    caption: str = ""


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    text: str
    figures: tuple[_Figure, ...]
    table: tuple[list[str], list[list[str]]] | None = None
    """Headings and rows."""


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
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        sweep=sweep,
        when=f"begun {moment(sweep.started)}, last event {moment(sweep.last)}",
        lead=_lead(sweep),
        evidence_heading=tables.EVIDENCE,
        winner_headings=tables.winner_headings(shown),
        winners=[row for verdict in sweep.verdicts for row in tables.winners(verdict, shown)],
        legend=f"{legend(shown)}. {INTERVAL_LEGEND}.",
        notes=[*notes(sweep.verdicts), *first_trial_notes(sweep)],
        sections=sections,
        cost=tables.cost(sweep),
        pictures=pictures,
        cards=cards,
        columns=tables.trial_headings(),
        rows=[tables.trial_row(trial) for trial in (*sweep.trials.values(), *sweep.confirmations.values())],
        figures=htmlsafe_json_dumps(figures, allow_nan=False, separators=(",", ":")),
        plotly=Markup(get_plotlyjs()),
    )


def _sections(sweep: SweepSnapshot) -> Iterator[_Section]:
    yield _Section(
        "front",
        "Variance lost by compression ratio",
        "Lower is better. Stars are the winners of the grids, dotted lines the baselines, which need no training. "
        "Crosses are trials that were stopped early or failed; they compete with nothing.",
        (_Figure("front", draw.front_figure(sweep)),),
    )
    yield _Section(
        "likeness",
        "Variance lost against likeness to tokens",
        _likeness_text(sweep),
        (_Figure("likeness", draw.fidelity_figure(sweep)),),
    )
    if kinds(sweep):
        yield _kinds(sweep)
    panels = [(verdict, keys.parallel_figure(sweep, verdict)) for verdict in sweep.verdicts]
    drawn = tuple(
        _Figure(f"parallel-{verdict.grid}", figure, f"{verdict.grid} x {verdict.grid}")
        for verdict, figure in panels
        if figure is not None
    )
    if drawn:
        yield _Section(
            "keys",
            "Searched keys",
            "Every line is a complete trial; the darker it is, the less variance the trial lost. Drag along an axis to "
            "select trials.",
            drawn,
        )
    yield _importance(sweep)
    yield _Section(
        "curves",
        "Learning curves",
        f"The fvu of every trial by epoch, up to {sweep.epochs} epochs.",
        (_Figure("curves", draw.curves_figure(sweep)),),
    )
    if sweep.spec.early_stopping is not None:
        rule = sweep.spec.early_stopping
        figures = " and ".join(FIGURES[name].title for name in compared(sweep.spec.judged_by))
        yield _Section(
            "savings",
            "Early stopping",
            f"Successive halving within each grid on {figures} together: at epoch {rule.min_epochs} and at later "
            f"rungs, 1 of {rule.reduction} trials goes on. tokconv replay reports what this may have missed.",
            (_Figure("savings", draw.savings_figure(sweep)),),
        )


def _likeness_text(sweep: SweepSnapshot) -> str:
    likeness = FIGURES[sweep.verdicts[0].likeness].title
    text = (
        "Low is good on both axes: the compressed tokens keep the content (fvu) and look like real tokens "
        f"({likeness}). The dashed line is the floor, the {likeness} between two samples of real tokens."
    )
    if sweep.verdicts[0].likeness != "val/swd":
        return text
    return (
        f"{text} Window PCA is left out: its codes look nothing like tokens, and its point would lie far to the right."
    )


def _kinds(sweep: SweepSnapshot) -> _Section:
    figure = FIGURES[readability(sweep.verdicts)]
    return _Section(
        "kinds",
        "The front of each kind of compressor",
        f"Fidelity (fvu) against readability ({figure.title}: {figure.meaning}). The line of a kind joins the points "
        "that no other one of its kind dominates; a trial counts as it ended and with every best epoch that it kept. "
        "Baselines are grey.",
        (_Figure("kinds", draw.kinds_figure(sweep)),),
        (tables.kind_headings(sweep), tables.kind_rows(sweep)),
    )


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


def _lead(sweep: SweepSnapshot) -> str:
    kept = [
        f"{verdict.ratio:.3g}x {1 - verdict.evidence.figures['val/fvu']:.1%}"
        for verdict in sweep.verdicts
        if verdict.evidence is not None
    ]
    counts = states_text(sweep.states)
    if not kept:
        return f"No trial is complete yet. Trials: {counts or 'none'}."
    return (
        f"Share of the tokens' variance kept by the best compressor at each ratio: {', '.join(kept)}. Trials: {counts}."
    )


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
    figure.update_layout(
        template="none", margin={"l": 70, "r": 20, "t": 40, "b": 60}, legend={"orientation": "h", "y": -0.2}
    )
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain

"""The page of a sweep: one HTML file that needs no network, from the sweep's directory alone."""

from __future__ import annotations

import base64
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import plotly.graph_objects as go
from markdown_it import MarkdownIt
from markupsafe import Markup
from plotly.offline import get_plotlyjs

from tokconv.evaluation.protocol import JUDGED_ON
from tokconv.sweep.judge.evidence import PROVEN
from tokconv.sweep.judge.snapshot import SweepSnapshot
from tokconv.sweep.judge.verdicts import Verdict
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report import page_figures as draw
from tokconv.sweep.report import page_keys as keys
from tokconv.sweep.report.importance import MIN_TRIALS, importance
from tokconv.sweep.report.progress import STATES, compact
from tokconv.sweep.report.results import LEGEND, notes
from tokconv.system.files import write_text
from tokconv.system.terminal import duration

TEMPLATE = Path(__file__).with_name("page.html")
CELLS = ("val/fvu", "val/swd", "val/gain", "val/cosine")
"""Figures in the table of all trials."""
COLUMNS = ("trial", "state", "ratio", "epochs", *(name.removeprefix("val/") for name in CELLS), "values", "reason")
HEIGHT = 440


@dataclass(frozen=True)
class _Figure:
    key: str
    plot: go.Figure
    caption: str = ""

    @property
    def height(self) -> int:
        return int(self.plot.layout.height or HEIGHT)


@dataclass(frozen=True)
class _Section:
    anchor: str
    title: str
    text: str
    figures: tuple[_Figure, ...]


def write_page(view: SweepSnapshot, path: Path) -> Path:
    """Write the page of a sweep, finished or not; the path comes back.

    Args:
        view: from `tokconv.sweep.judge.snapshot.read_sweep`.
        path: the HTML file, replaced at once.

    Raises:
        OSError: it cannot be written.
    """
    write_text(path, page(view))
    return path


def page(view: SweepSnapshot) -> str:
    """The HTML. Everything that comes from the sweep is escaped."""
    sections = list(_sections(view))
    figures = {figure.key: _plain(figure.plot) for section in sections for figure in section.figures}
    pictures, cards = list(_pictures(view)), list(_cards(view))
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    contents = [("winners", "winners"), *((s.anchor, s.title.lower()) for s in sections), ("cost", "what it took")]
    contents += [("pictures", "pictures")] * bool(pictures) + [("cards", "model cards")] * bool(cards)
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        name=view.directory.name,
        state=view.state,
        when=f"begun {_day(view.started)}, last event {_day(view.last)}",
        protocol=view.facts["protocol"],
        commit=view.facts.get("git_commit") or "",
        store=view.facts["store_fingerprint"],
        lead=_lead(view),
        contents=[*contents, ("trials", "all trials")],
        winners=[_winner(verdict) for verdict in view.verdicts],
        probed=any("val/probe_kept" in trial.figures for trial in view.trials.values()),
        legend=f"{LEGEND} +-: half of the 95 % interval over the confirmation seeds.",
        notes=notes(view.verdicts),
        sections=sections,
        cost=_cost(view),
        cost_text=COST_TEXT,
        pictures=pictures,
        cards=cards,
        columns=COLUMNS,
        rows=[_row(trial) for trial in (*view.trials.values(), *view.confirmations.values())],
        figures=Markup(_in_script(json.dumps(figures, allow_nan=False, separators=(",", ":")))),
        plotly=Markup(get_plotlyjs()),
    )


def _sections(view: SweepSnapshot) -> Iterator[_Section]:
    yield _Section(
        "front",
        "Variance lost by compression ratio",
        "Lower is better. A star is a grid's winner, dotted lines are what needs no training; crosses were stopped "
        "early and count for nothing.",
        (_Figure("front", draw.front_figure(view)),),
    )
    yield _Section(
        "likeness",
        "Variance lost against likeness to tokens",
        "Both low is good: the compressed tokens hold what was there (fvu) and look like real tokens (swd). The dashed "
        "line is the floor, real tokens against real tokens. Window PCA's codes look nothing like tokens and would lie "
        "far to the right.",
        (_Figure("likeness", draw.fidelity_figure(view)),),
    )
    panels = [(verdict, keys.parallel_figure(view, verdict)) for verdict in view.verdicts]
    drawn = tuple(
        _Figure(f"parallel-{verdict.grid}", figure, f"{verdict.grid} x {verdict.grid}")
        for verdict, figure in panels
        if figure is not None
    )
    if drawn:
        yield _Section(
            "keys",
            "Searched keys",
            "A line is a complete trial, the darker the less variance it lost. Drag along an axis to choose.",
            drawn,
        )
    yield _importance(view)
    yield _Section(
        "curves",
        "Learning curves",
        f"Of every trial, up to {view.epochs} epochs.",
        (_Figure("curves", draw.curves_figure(view)),),
    )
    if view.spec.early_stopping is not None:
        rule = view.spec.early_stopping
        yield _Section(
            "savings",
            "Early stopping",
            f"Successive halving within each grid on fvu and swd together: at epoch {rule.min_epochs} and later rungs "
            f"1 of {rule.reduction} goes on. What it may have missed: tokconv replay.",
            (_Figure("savings", draw.savings_figure(view)),),
        )


def _importance(view: SweepSnapshot) -> _Section:
    figures, few = [], []
    for verdict in view.verdicts:
        found = {metric: importance(verdict.trials, view.spec.search, metric) for metric in JUDGED_ON}
        found = {metric: shares for metric, shares in found.items() if shares}
        name = f"{verdict.grid} x {verdict.grid}"
        if found:
            caption = f"{name}, {len(verdict.trials)} trials"
            figures.append(_Figure(f"importance-{verdict.grid}", keys.importance_figure(found), caption))
        else:
            few.append(f"{name} ({len(verdict.trials)})")
    text = (
        "How differently the best tenth of a grid's complete trials is spread over each key (PED-ANOVA): an "
        "association among the trials that were run, not a cause."
    )
    if few:
        text += f" Left out, too few complete trials to say (fewer than {MIN_TRIALS}): {', '.join(few)}."
    return _Section("importance", "Which keys matter", text, tuple(figures))


def _lead(view: SweepSnapshot) -> str:
    kept = [
        f"{verdict.ratio:.3g}x {1 - verdict.evidence.figures['val/fvu']:.1%}"
        for verdict in view.verdicts
        if verdict.champion is not None and verdict.evidence is not None
    ]
    counts = ", ".join(f"{count} {STATES[state]}" for state, count in view.states.items())
    if not kept:
        return f"No trial is complete yet. Trials: {counts or 'none'}."
    return (
        f"Share of the tokens' variance kept by the best compressor at each ratio: {', '.join(kept)}. Trials: {counts}."
    )


def _winner(verdict: Verdict) -> dict[str, str]:
    champion, evidence = verdict.champion, verdict.evidence
    row = {"grid": str(verdict.grid), "tokens": str(verdict.grid**2), "ratio": f"{verdict.ratio:.3g}x"}
    row["pca"] = f"{verdict.baselines['window_pca']['val/fvu']:.4f}" if "window_pca" in verdict.baselines else ""
    if champion is None or evidence is None:
        blank = dict.fromkeys(("kept", "fvu", "swd", "cosine", "probe", "status"), "")
        return {**row, **blank, "evidence": "no complete trial"}
    figures, widths = evidence.figures, evidence.half_widths

    def cell(name: str, digits: int) -> str:
        if name not in figures:
            return ""
        spread = f" +- {widths[name]:.{digits}f}" if name in widths else ""
        return f"{figures[name]:.{digits}f}{spread}"

    floor = f" ({figures['val/swd_floor']:.3f})" if "val/swd_floor" in figures else ""
    return {
        **row,
        "kept": f"{1 - figures['val/fvu']:.1%}",
        "fvu": cell("val/fvu", 4),
        "swd": cell("val/swd", 3) + floor,
        "cosine": f"{figures['val/cosine']:.3f}" if "val/cosine" in figures else "",
        "probe": f"{figures['val/probe_kept']:.1%}" if "val/probe_kept" in figures else "",
        "status": evidence.status,
        "evidence": f"{evidence.label}, trial {champion.uid}" + ("" if verdict.meets_targets else ", misses a target"),
    }


def _cost(view: SweepSnapshot) -> list[tuple[str, str]]:
    searched, confirmed = _seconds(view.trials), _seconds(view.confirmations)
    resources = view.spec.resources
    gpus = resources.gpus_per_worker * resources.workers
    per, unit = (gpus, "GPU time") if gpus else (resources.cpus_per_worker * resources.workers, "CPU time")
    pruned = [trial for trial in view.trials.values() if trial.state == "pruned" and trial.history]
    saved = sum((trial.seconds or 0.0) / len(trial.history) * (view.epochs - len(trial.history)) for trial in pruned)
    return [
        (duration((view.last - view.started) / 1000), "from the start of this run to its last event"),
        (duration(searched * per), f"{unit} of the search"),
        (duration(confirmed * per), f"{unit} of the confirmations"),
        (duration(saved * per), f"{unit} saved by early stopping"),
    ]


COST_TEXT = (
    "Times are the trials' own, from start to end, multiplied by what each reserved; process starts are in them, "
    "encoding and baselines are not. What early stopping saved is reckoned from each stopped trial's own pace."
)


def _seconds(trials: Mapping[str, TrialRecord]) -> float:
    return sum(trial.seconds or 0.0 for trial in trials.values())


def _pictures(view: SweepSnapshot) -> Iterator[dict[str, str]]:
    for verdict in view.verdicts:
        if verdict.champion is not None:
            path = view.directory.artifacts(verdict.champion.uid) / "reconstruction.png"
            if path.is_file():
                yield {
                    "title": f"{draw.title(verdict)}, trial {verdict.champion.uid}",
                    "data": base64.b64encode(path.read_bytes()).decode(),
                }


def _cards(view: SweepSnapshot) -> Iterator[dict[str, Any]]:
    # This preset escapes HTML in the text.
    markdown = MarkdownIt("js-default")
    for verdict in view.verdicts:
        path = view.directory.champion(verdict.grid) / "README.md"
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            if text.startswith("---\n"):
                # What the Hugging Face hub reads; Markdown would make a heading of it.
                text = text.partition("\n---\n")[2]
            html = markdown.render(text.replace("\n# ", "\n#### ", 1))
            proven = "" if verdict.evidence is None or verdict.evidence.status == PROVEN else ", not proven"
            yield {"title": f"{verdict.grid} x {verdict.grid}{proven}", "html": Markup(html)}


def _row(trial: TrialRecord) -> list[str]:
    figures = trial.figures
    return [
        trial.uid,
        STATES[trial.state],
        f"{trial.ratio:.3g}x",
        str(len(trial.history)),
        *(f"{figures[name]:.4f}" if name in figures else "" for name in CELLS),
        compact(trial.values),
        trial.reason or ("" if trial.confirms is None else f"confirms {trial.confirms}"),
    ]


def _plain(figure: go.Figure) -> dict[str, Any]:
    """Data and layout without plotly's templates, which are 7 KB a figure."""
    figure.update_layout(
        template="none", margin={"l": 70, "r": 20, "t": 40, "b": 60}, legend={"orientation": "h", "y": -0.2}
    )
    plain: dict[str, Any] = json.loads(figure.to_json())
    plain["layout"].pop("template", None)
    return plain


def _in_script(text: str) -> str:
    """JSON that cannot end the script element that it stands in."""
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _day(milliseconds: int) -> str:
    return time.strftime("%Y-%m-%d %H:%M", time.localtime(milliseconds / 1000))

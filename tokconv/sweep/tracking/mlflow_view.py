"""What MLflow's UI shows: the names and figures of runs, and prepared views of an experiment.

A view has the columns and charts that answer the question of a sweep, for one ratio or for all of them. MLflow keeps it
as JSON in an experiment tag, in a format that is internal to MLflow; it is written only for the release with which it
was tested.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from tokconv.errors import printable
from tokconv.evaluation.baselines.registry import BASELINES, title_of
from tokconv.evaluation.figure import MLFLOW, NOTE
from tokconv.evaluation.figures import FIGURES, JUDGED_ON, shown_in
from tokconv.evaluation.purposes import PURPOSES
from tokconv.sweep.record.events import TrialRecord

TESTED_WITH = "3.17."
NAME = "tokconv"
VIEW = "mlflow.sharedViewState."
SECTION = "tokconv-section"
KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Tag of an experiment: MLflow then opens it with what training runs need, not with the view for language models."""
MOST_RUNS = 100
"""Runs per chart; MLflow's own default is 10."""


def view_tags(version: str, params: Iterable[str], grids: Sequence[int] = ()) -> dict[str, str]:
    """Return the experiment tags that hold the views: one of all runs and, of several grids, one of each.

    They are empty if this MLflow may not understand them.

    Args:
        version: the version of MLflow.
        params: the searched keys, in the order of their columns.
        grids: k of each ratio.
    """
    if not version.startswith(TESTED_WITH):
        return {}
    columns = list(params)
    views: list[int | None] = [None, *(grids if len(grids) > 1 else ())]
    return {VIEW + _name(grid): json.dumps(_state(columns, grid), separators=(",", ":")) for grid in views}


def view_url(base: str, experiment_id: str, version: str = TESTED_WITH, *, grid: int | None = None) -> str:
    """Return the link that opens an experiment with a prepared view, or with MLflow's own if there is none.

    Args:
        grid: k of the view's ratio; None is that of all ratios.

    Example:
        >>> view_url("http://127.0.0.1:5000", "1", grid=6)
        'http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=tokconv-06'
    """
    table = f"{base.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs"
    # MLflow shows an error for a view that does not exist.
    return f"{table}?viewStateShareKey={_name(grid)}" if version.startswith(TESTED_WITH) else table


def grids_with_views(tags: Mapping[str, str]) -> list[int]:
    """Return the grids that have a view of their own among an experiment's tags, ascending."""
    found = (re.fullmatch(re.escape(VIEW + NAME) + r"-([0-9]+)", tag) for tag in tags)
    return sorted(int(match[1]) for match in found if match)


def slug(text: str) -> str:
    """Return a text as a valid name of directories and models."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def description() -> str:
    """Return the experiment's note, which stands above its runs."""
    figures = "; ".join(f"`{figure.name}`: {figure.explanation}" for figure in shown_in(MLFLOW))
    return (
        "Compressors for the patch tokens of a vision tower, found by `tokconv sweep`. A run of kind *sweep* holds the "
        "spec and the report; its children of kind *trial* hold one compressor each, those of kind *baseline* a closed "
        f"form that needs no training. Runs of one ratio stand together, since only they compare. {figures}."
    )


def run_name(trial: TrialRecord) -> str:
    """Return the name of a trial's run. The ratio leads: some places show only names, and runs are compared there."""
    return f"{trial.ratio:.3g}x k={trial.grid} #{trial.uid}"


def baseline_run_name(name: str, grid: int, ratio: float) -> str:
    """Return the name of a baseline's run: `16x k=6 matched PCA`."""
    return f"{ratio:.3g}x k={grid} {title_of(name)}"


def baseline_note(name: str, grid: int) -> str:
    """Return the description of a baseline's run."""
    meaning = f": {BASELINES[name].meaning}" if name in BASELINES else ""
    return f"**{title_of(name)}**{meaning}. A closed form at {grid} x {grid}: nothing was trained."


def model_note(grid: int, tokens: int, encoder: str, sweep: str) -> str:
    """Return the description of a registered model, as the registry shows it.

    Args:
        grid: k.
        tokens: how many tokens an image has before.
        encoder: the vision tower.
        sweep: the experiment.
    """
    aliases = "; ".join(f"`{purpose.name}`: {purpose.meaning}" for purpose in PURPOSES.values())
    return (
        f"Compresses the {tokens} patch tokens of an image to {grid} x {grid} ({encoder}; {sweep}). Takes float32 "
        f"tokens [images, {tokens}, channels] without a class token and returns [images, {grid**2}, channels]. An "
        f"alias names what a version is the champion for. {aliases} `champion` is another name for `fidelity`."
    )


def run_params(trial: TrialRecord) -> dict[str, Any]:
    """Return the params of a trial's run: searched values, ratio, grid, tokens, and the trial that it confirms."""
    sizes = {"compression_ratio": trial.ratio, "output_grid_size": trial.grid, "num_tokens": trial.grid**2}
    return trial.values | sizes | ({} if trial.confirms is None else {"confirms": trial.confirms})


def run_note(trial: TrialRecord, token_grid: int) -> str:
    """Return the description of a trial's run in Markdown, as its page shows it.

    Args:
        trial: with its last report, if there is one.
        token_grid: G.
    """
    grid, tokens = f"{trial.grid} x {trial.grid}", trial.grid**2
    lines = [f"**{grid}**: {tokens} tokens instead of {token_grid**2}, {trial.ratio:.3g}x fewer."]
    if trial.confirms is not None:
        lines.append(f"Trains trial #{trial.confirms} again with another seed.")
    values = [f"`{name}` = {shown(value)}" for name, value in trial.values.items()]
    lines += [f"Searched: {', '.join(values)}."] if values else []
    if trial.figures:
        known = [figure for figure in shown_in(NOTE) if figure.name in trial.figures]
        figures = [f"{figure.title} {figure.text(trial.figures[figure.name])}" for figure in known]
        lines.append(f"Held out after epoch {trial.figures['epoch']}: {', '.join(figures)}.")
    return "\n\n".join([*lines, f"State: {trial.state}{f', {trial.reason}' if trial.reason else ''}."])


def rounded(value: float) -> float:
    """Return a value with six digits: MLflow's tables show every digit that there is."""
    return float(f"{value:.6g}")


def shown(value: Any) -> str:
    """Return a param as text."""
    return f"{value:.6g}" if isinstance(value, float) else printable(value)


def _name(grid: int | None) -> str:
    """Return the name of a view."""
    return NAME if grid is None else f"{NAME}-{grid:02d}"


def _state(params: list[str], grid: int | None) -> dict[str, Any]:
    """Return MLflow's JSON. Keys with slashes and dots stand in backquotes, as in its search language."""
    # Without a filter the parent run folds the whole table into one row. The search language has no "or".
    kinds = 'tags.`tokconv.kind` != "sweep" AND tags.`tokconv.kind` != "confirm"'
    return {
        "searchFilter": kinds if grid is None else f'{kinds} AND params.`output_grid_size` = "{grid}"',
        "orderByKey": f"metrics.`{JUDGED_ON[0]}`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"metrics.`{figure.name}`" for figure in shown_in(MLFLOW)),
            *(f"params.`{name}`" for name in params),
            "tags.`tokconv.champion`",
            "tags.`tokconv.state`",
            # One experiment may hold runs of two protocols, whose figures do not compare.
            "tags.`tokconv.protocol`",
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": _charts(params),
        "compareRunSections": [
            {
                "uuid": SECTION,
                "name": "tokconv",
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
            }
        ],
        "viewMaximized": False,
        "runListHidden": False,
        "isAccordionReordered": True,
        "useGroupedValuesInCharts": False,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _charts(params: list[str]) -> list[dict[str, Any]]:
    error, likeness = JUDGED_ON
    return [
        _scatter("compression_ratio", error),
        _scatter(error, likeness),
        _chart(
            "PARALLEL",
            "searched keys",
            selectedParams=params,
            selectedMetrics=["compression_ratio", error],
            showAllRuns=False,
        ),
        _chart(
            "LINE",
            f"{error} by epoch",
            metricKey=error,
            selectedMetricKeys=[error],
            lineSmoothness=0,
            xAxisScaleType="linear",
            scaleType="log",
            range={},
            xAxisKey="step",
            selectedXAxisMetricKey="",
            yAxisKey="metric",
            yAxisExpressions=[],
            ignoreOutliers=False,
            useGlobalXaxisKey=True,
            useGlobalLineSmoothing=True,
        ),
    ]


def _scatter(x: str, y: str) -> dict[str, Any]:
    title = f"{FIGURES[y].title} by {FIGURES[x].title}"
    return _chart("SCATTER", title, xaxis={"key": x, "type": "METRIC"}, yaxis={"key": y, "type": "METRIC"})


def _chart(kind: str, title: str, **fields: Any) -> dict[str, Any]:
    return {
        "uuid": f"tokconv-{kind.lower()}-{title.replace(' ', '-')}",
        "type": kind,
        "displayName": title,
        "runsCountToCompare": MOST_RUNS,
        "metricSectionId": SECTION,
        "deleted": False,
        "isGenerated": False,
        **fields,
    }

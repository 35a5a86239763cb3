"""What a person sees in MLflow's UI: names and figures as they are written there, and a prepared view.

The view has the columns and charts that answer a sweep's question. MLflow keeps it as JSON in an experiment tag, in a
format that is internal to MLflow: it is written only for the release it was tried with.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import Any
from urllib.parse import quote

TRIED_WITH = "3.17."
NAME = "tokconv"
FIGURES = (
    "compression_ratio",
    "val/fvu",
    "val/swd",
    "val/gain",
    "val/cosine",
    "val/knn_overlap",
    "val/probe_kept",
    "val/reader_kept",
)
NOTED = ("val/fvu", "val/gain", "val/swd", "val/swd_floor")
"""Figures in a run's description."""
DESCRIPTION = (
    "Compressors for CLIP patch tokens, found by `tokconv sweep`. A run of kind *sweep* holds the spec and the report, "
    "its children of kind *trial* one compressor each. `compression_ratio`: tokens in / tokens out. `val/fvu`: share "
    "of the tokens' variance that is lost. `val/swd`: distance to real tokens. `val/gain`: share of average pooling's "
    "fvu that is gone."
)
"""The experiment's note, above its runs."""
SECTION = "tokconv-section"
MOST_RUNS = 100
"""Runs in a chart; MLflow's own default is 10."""


def view_tags(version: str, params: Iterable[str]) -> dict[str, str]:
    """The experiment tag that holds the view; empty when this MLflow may not understand it.

    Args:
        version: MLflow's.
        params: the searched keys, in the order of their columns.
    """
    if not version.startswith(TRIED_WITH):
        return {}
    return {f"mlflow.sharedViewState.{NAME}": json.dumps(_state(list(params)), separators=(",", ":"))}


def view_url(base: str, experiment_id: str, version: str = TRIED_WITH) -> str:
    """The link that opens an experiment with the prepared view, or with MLflow's own where there is none.

    Example:
        >>> view_url("http://127.0.0.1:5000", "1")
        'http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=tokconv'
    """
    table = f"{base.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs"
    # MLflow shows an error for a view that is not there.
    return f"{table}?viewStateShareKey={NAME}" if version.startswith(TRIED_WITH) else table


def slug(text: str) -> str:
    """A text as a name of directories and models may be."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", text)


def run_name(uid: str, ratio: float, token_grid: int) -> str:
    """Of a trial's run. The ratio leads, so that runs can be compared at a glance wherever only names are shown."""
    return f"{ratio:.3g}x k={round(token_grid / ratio**0.5)} #{uid}"


def run_params(started: Mapping[str, Any], token_grid: int) -> dict[str, Any]:
    """Of a trial's run, from its `trial_started`: searched values, ratio, grid, tokens, and what it confirms."""
    ratio = started["ratio"]
    grid = round(token_grid / ratio**0.5)
    params = started["values"] | {"compression_ratio": ratio, "output_grid_size": grid, "num_tokens": grid**2}
    return params | {"confirms": started["confirms"]} if "confirms" in started else params


def run_note(
    started: Mapping[str, Any], token_grid: int, last: Mapping[str, Any] | None, state: str, reason: str
) -> str:
    """Of a trial's run, as its page shows it (Markdown).

    Args:
        started, last: its `trial_started` and its last `trial_reported`, if there is one.
        state, reason: as the record has them.
    """
    tokens = round(token_grid**2 / started["ratio"])
    side = round(tokens**0.5)
    lines = [f"**{side} x {side}**: {tokens} tokens instead of {token_grid**2}, {started['ratio']:.3g}x fewer."]
    if "confirms" in started:
        lines.append(f"Trains trial #{started['confirms']} again with another seed.")
    values = [f"`{name}` = {shown(value)}" for name, value in started["values"].items()]
    lines += [f"Searched: {', '.join(values)}."] if values else []
    if last is not None:
        known = [(name.removeprefix("val/"), last["figures"][name]) for name in NOTED if name in last["figures"]]
        figures = [f"{name} {value:.4g}" for name, value in known]
        lines.append(f"Held out after epoch {last['epoch']}: {', '.join(figures)}.")
    return "\n\n".join([*lines, f"State: {state}{f', {reason}' if reason else ''}."])


def rounded(value: float) -> float:
    """Six digits: MLflow's tables show all that there are."""
    return float(f"{value:.6g}")


def shown(value: Any) -> str:
    """A param as text."""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _state(params: list[str]) -> dict[str, Any]:
    """MLflow's JSON. Keys with slashes and dots stand in backquotes, as in its search language."""
    return {
        # Without the filter the parent run folds the whole table into one row.
        "searchFilter": 'tags.`tokconv.kind` = "trial"',
        "orderByKey": "metrics.`val/fvu`",
        "orderByAsc": True,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [
            *(f"metrics.`{name}`" for name in FIGURES),
            *(f"params.`{name}`" for name in params),
            "tags.`tokconv.state`",
            # Runs of two protocols may stand in one experiment; their figures do not compare.
            "tags.`tokconv.evaluation.protocol`",
        ],
        "columnOrder": [],
        "columnWidths": {},
        "runsExpanded": {},
        "runsPinned": [],
        "runsHidden": [],
        "runsVisibilityMap": {},
        "runsHiddenMode": "SHOWALL",
        "compareRunCharts": [
            _scatter("compression_ratio", "val/fvu", "variance lost (fvu) by compression ratio"),
            _scatter("val/fvu", "val/swd", "token-likeness (swd) by variance lost (fvu)"),
            _chart(
                "PARALLEL",
                "searched keys",
                selectedParams=params,
                selectedMetrics=["compression_ratio", "val/fvu"],
                showAllRuns=False,
            ),
            _chart(
                "LINE",
                "val/fvu by epoch",
                metricKey="val/fvu",
                selectedMetricKeys=["val/fvu"],
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
        ],
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
        "useGroupedValuesInCharts": True,
        "hideEmptyCharts": True,
        "groupBy": None,
        "groupsExpanded": {},
        "autoRefreshEnabled": True,
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _scatter(x: str, y: str, title: str) -> dict[str, Any]:
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

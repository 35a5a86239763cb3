"""A prepared view of an experiment in MLflow's UI: the columns and charts that answer a sweep's question.

MLflow keeps a shared view as JSON in an experiment tag. Its format is internal to MLflow, so the view is written only
for the release it was tried with; elsewhere the plain table opens.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
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
    "val/probe_kept",
)
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


def view_url(base: str, experiment_id: str) -> str:
    """The link that opens an experiment with the prepared view; without one there, MLflow shows the plain table.

    Example:
        >>> view_url("http://127.0.0.1:5000", "1")
        'http://127.0.0.1:5000/#/experiments/1/runs?viewStateShareKey=tokconv'
    """
    return f"{base.rstrip('/')}/#/experiments/{quote(experiment_id)}/runs?viewStateShareKey={NAME}"


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

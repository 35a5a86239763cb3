"""What a person sees in MLflow: prepared views, baselines beside the trials, the server of the UI."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.tracked import client, deliver, new_record, run_trial, runs, start_sweep

from tokconv.errors import SweepError
from tokconv.sweep.tracking.mlflow_connection import check_tracking, local_uri
from tokconv.sweep.tracking.mlflow_ui import server_command, views_of
from tokconv.sweep.tracking.mlflow_view import view_tags, view_url
from tokconv.system.uris import path_of

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("tracked_quickly")
VIEWS = ("tokconv", "tokconv-02", "tokconv-04")


def test_the_prepared_view_and_the_description_are_on_the_experiment(root: Path) -> None:
    start_sweep(new_record(root))
    deliver(root)
    tags = client(root).get_experiment_by_name("demo").tags
    view = json.loads(tags["mlflow.sharedViewState.tokconv"])
    assert "metrics.`val/fvu`" in view["selectedColumns"]
    assert "params.`training.n_critic`" in view["selectedColumns"]
    assert "tags.`tokconv.protocol`" in view["selectedColumns"], "the tag that every run has"
    assert view["compareRunCharts"][0]["xaxis"]["key"] == "compression_ratio"
    assert "compression_ratio" in tags["mlflow.note.content"]


def test_baselines_are_runs_beside_the_trials_of_their_ratio(root: Path) -> None:
    record = new_record(root)
    start_sweep(record, baselines={"2": {"pooling": {"val/fvu": 0.2}, "matched_window_pca": {"val/fvu": 0.1}}})
    run_trial(record, "00001")
    for _ in range(2):
        deliver(root)
        (root / "mlflow.cursor").unlink()
    reader = client(root)
    found = reader.search_runs(["1"], "tags.`tokconv.kind` = 'baseline'")
    assert {run.info.run_name: run.data.metrics["val/fvu"] for run in found} == {
        "4x k=2 pooling": 0.2,
        "4x k=2 matched PCA": 0.1,
    }
    pruned = runs(reader)["00001"]
    assert {run.data.params["compression_ratio"] for run in (*found, pruned)} == {"4"}
    assert {run.info.status for run in (*found, pruned)} == {"FINISHED"}
    assert pruned.data.tags["tokconv.state"] == "pruned"
    # The prepared view lists them with the trials.
    tags = reader.get_experiment("1").tags
    view = json.loads(tags["mlflow.sharedViewState.tokconv"])
    assert len(reader.search_runs(["1"], view["searchFilter"])) == 3
    assert tags["mlflow.experimentKind"] == "custom_model_development"


def test_each_ratio_has_a_view_of_its_own_and_the_ui_begins_with_them(root: Path) -> None:
    record = new_record(root)
    start_sweep(record, baselines={"4": {"pooling": {"val/fvu": 0.0}}, "2": {"pooling": {"val/fvu": 0.2}}})
    run_trial(record, "00001")
    deliver(root)
    reader = client(root)
    tags = reader.get_experiment("1").tags
    filters = {name: json.loads(tags[f"mlflow.sharedViewState.{name}"])["searchFilter"] for name in VIEWS}
    ratios = {
        name: {run.data.params["compression_ratio"] for run in reader.search_runs(["1"], text)}
        for name, text in filters.items()
    }
    assert ratios == {"tokconv": {"1", "4"}, "tokconv-02": {"4"}, "tokconv-04": {"1"}}
    link = "/#/experiments/1/runs?viewStateShareKey="
    assert list(views_of(local_uri(root), "demo").items()) == [
        ("trials at 2x2 in MLflow", f"{link}tokconv-02"),
        ("trials at 4x4 in MLflow", f"{link}tokconv-04"),
        ("all trials in MLflow", f"{link}tokconv"),
    ]


def test_the_view_of_a_sweep_that_is_not_tracked_yet_is_refused(root: Path) -> None:
    with pytest.raises(SweepError, match=r"mlflow\.db: no such database; a sweep writes it when"):
        views_of(local_uri(root / "nowhere"), "demo")
    record = new_record(root)
    start_sweep(record)
    deliver(root)
    table = "/#/experiments/1/runs?viewStateShareKey=tokconv"
    assert views_of(local_uri(root), "demo") == {"all trials in MLflow": table}
    with pytest.raises(SweepError, match="has no experiment 'other' yet"):
        views_of(local_uri(root), "other")


def test_the_view_is_left_out_for_other_releases_of_mlflow() -> None:
    assert view_tags("3.18.0", []) == {}
    assert view_tags("3.1.0", []) == {}
    assert view_url("http://host:1/", "7", "3.18.0") == "http://host:1/#/experiments/7/runs"
    assert view_url("http://host:1/", "7", "3.17.2") == "http://host:1/#/experiments/7/runs?viewStateShareKey=tokconv"


def test_the_server_of_the_ui_serves_this_machine_only(root: Path) -> None:
    words = server_command(local_uri(root), root, 5001)
    assert words[words.index("--host") + 1 :][:3] == ["127.0.0.1", "--port", "5001"]
    assert words[words.index("--backend-store-uri") + 1] == local_uri(root)
    assert path_of(words[-1]) == root / "mlartifacts"


def test_check_tracking_reports_what_it_did(root: Path) -> None:
    assert mlflow.__version__ in check_tracking(root)

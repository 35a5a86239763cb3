"""MLflow gets every event once, whatever fails, and the sweep never waits for it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.artefacts import write_export
from support.databases import FRESH
from support.ports import free_port
from support.tracked import (
    OPENED,
    STATES,
    STATUS,
    Flaky,
    Proxy,
    Server,
    artifacts,
    client,
    deliver,
    delivered_points,
    end_sweep,
    new_record,
    recorded_points,
    run_trial,
    runs,
    runs_of_first_sweep,
    start_sweep,
    whole_sweep,
    writer,
)

from tokconv import load_compressor
from tokconv.errors import SweepError
from tokconv.exports.artefact import FILES
from tokconv.sweep.tracking import follower, mlflow_runs
from tokconv.sweep.tracking import mlflow_writer as tracking
from tokconv.sweep.tracking.mlflow_connection import (
    DATABASE,
    ENVIRONMENT,
    check_tracking,
    connect,
    local_uri,
    tracking_uri,
)
from tokconv.sweep.tracking.mlflow_ui import server_command, views_of
from tokconv.sweep.tracking.mlflow_view import view_tags, view_url
from tokconv.system.uris import path_of, sqlite_uri

mlflow = pytest.importorskip("mlflow")


AWKWARD = "-my%20runs %2F #1?a=b&c;'d'\"[e]{f}*$HOME`g`<h>|\\é\N{GRINNING FACE}~:@,!^+(i)%"

VIEWS = ("tokconv", "tokconv-02", "tokconv-04")


@pytest.fixture(scope="module")
def export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_export(tmp_path_factory.mktemp("artefact") / "compressor")


@pytest.fixture(autouse=True)
def _patience(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Shorten the waits, and check that the working directory stays empty."""
    monkeypatch.setattr(follower, "POLL_SECONDS", 0.02)
    monkeypatch.setattr(follower, "FIRST_WAIT", 0.02)
    monkeypatch.setattr(follower, "LONGEST_WAIT", 0.1)
    for name in ENVIRONMENT:
        monkeypatch.setenv(name, ENVIRONMENT[name])
    here = tmp_path / "working directory"
    here.mkdir()
    monkeypatch.chdir(here)
    yield
    while OPENED:
        OPENED.pop().close()
    assert not list(here.iterdir())
    # A name that is not quoted, or quoted twice, ends up in another folder.
    assert {path.name for path in tmp_path.iterdir()} <= {here.name, AWKWARD, "another machine", "newer", "loaded"}


@pytest.fixture(scope="module")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """MLflow's own tables; creating them takes seconds, so it is done once."""
    path = tmp_path_factory.mktemp("mlflow") / DATABASE
    connect(sqlite_uri(path)).search_experiments()
    return path


@pytest.fixture
def root(tmp_path: Path, empty_database: Path) -> Path:
    """A storage root whose name has every sign that means something in a URI, a shell or a pattern."""
    path = tmp_path / AWKWARD
    path.mkdir()
    (path / DATABASE).write_bytes(empty_database.read_bytes())
    return path


def test_importing_the_writer_does_not_import_mlflow() -> None:
    heavy = "{'mlflow', 'torch', 'ray'}"
    code = f"import sys, tokconv.sweep.tracking.mlflow_writer; sys.exit(bool({heavy} & set(sys.modules)))"
    root = Path(tracking.__file__).parents[3]
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=root).returncode == 0


def test_the_uri_comes_from_the_spec_else_the_environment_else_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert tracking_uri(None, tmp_path) == local_uri(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mlflow:5000")
    assert tracking_uri(None, tmp_path) == "http://mlflow:5000"
    assert tracking_uri("http://other:5000", tmp_path) == "http://other:5000"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    assert tracking_uri(None, tmp_path) == local_uri(tmp_path)


def test_nothing_is_printed_on_the_terminal(root: Path, export: Path, capfd: pytest.CaptureFixture[str]) -> None:
    whole_sweep(root, export)
    deliver(root, sqlite_uri(root / FRESH))
    assert capfd.readouterr() == ("", "")


def test_the_whole_record_arrives(root: Path, export: Path) -> None:
    record = whole_sweep(root, export)
    delivery = deliver(root)
    assert "all 31 events" in str(delivery)
    reader = client(root)
    assert delivered_points(reader) == recorded_points(record.path)
    trials = runs(reader)
    for uid, state in STATES.items():
        run, recorded = trials[uid], record.trials[uid]
        assert run.info.run_name == f"4x k=2 #{uid}"
        assert run.info.status == STATUS[state]
        assert (run.info.start_time, run.info.end_time) == (recorded.started, recorded.ended)
        assert (run.data.tags["tokconv.state"], run.data.tags["tokconv.reason"]) == (state, recorded.reason)
        assert run.data.tags["tokconv.protocol"] == "2"
        assert run.data.params == {
            "training.n_critic": str(int(uid)),
            "loss.weights.wgan": "0.123457",
            "compression_ratio": "4",
            "output_grid_size": "2",
            "num_tokens": "4",
        }
    note = trials["00001"].data.tags["mlflow.note.content"]
    assert note.startswith("**2 x 2**: 4 tokens instead of 16, 4x fewer.")
    assert "`training.n_critic` = 1" in note
    assert f"State: {STATES['00001']}" in note
    parent = runs(reader, "sweep")["demo-001"]
    assert (parent.info.run_name, parent.info.status) == ("demo-001", "FINISHED")
    assert (
        parent.data.tags.items()
        >= {
            "tokconv.store_fingerprint": "f00d",
            "tokconv.protocol": "2",
            "mlflow.source.git.commit": "c0ffee",
            "tokconv.plan.trials": "4",
            "mlflow.note.content": "| grid |\n| --- |",
        }.items()
    )
    assert {run.data.tags["mlflow.parentRunId"] for run in trials.values()} == {parent.info.run_id}
    assert artifacts(reader, parent) == {"spec.yaml", "report/results.csv"}
    assert {"compressor/model.safetensors", "compressor/config.json"} <= artifacts(reader, trials["00000"])
    assert parent.info.artifact_uri.startswith((root / "mlartifacts" / "demo").as_uri())


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


@pytest.mark.parametrize("cursor", [None, '{"place": "', "[1]", '{"place": "elsewhere", "offset": 900}'])
def test_delivering_all_again_adds_nothing(root: Path, export: Path, cursor: str | None) -> None:
    """As after a crash between a delivery and the write of its cursor, or with a torn cursor."""
    record = whole_sweep(root, export)
    deliver(root)
    if cursor is None:
        (root / "mlflow.cursor").unlink()
    else:
        (root / "mlflow.cursor").write_text(cursor)
    deliver(root)
    reader = client(root)
    assert delivered_points(reader) == recorded_points(record.path)
    assert len(runs(reader, "sweep")) == 1
    assert len(reader.search_model_versions("name = 'tokconv-demo-2x2'")) == 1
    assert {uid: run.info.status for uid, run in runs(reader).items()} == {u: STATUS[s] for u, s in STATES.items()}


def test_a_cursor_of_a_deleted_database_is_ignored(root: Path, export: Path, empty_database: Path) -> None:
    record = whole_sweep(root, export)
    deliver(root)
    (root / DATABASE).unlink()
    # A new name, since MLflow keeps connections to the old file.
    (root / "new.db").write_bytes(empty_database.read_bytes())
    uri = sqlite_uri(root / "new.db")
    deliver(root, uri)
    assert delivered_points(client(root, uri)) == recorded_points(record.path)


def test_two_sweeps_of_one_name_stay_separate(root: Path, tmp_path: Path) -> None:
    for folder in (root, tmp_path / "another machine"):
        record = new_record(folder)
        start_sweep(record)
        run_trial(record, "00000")
        time.sleep(0.01)
        deliver(folder, local_uri(root))
    reader = client(root)
    experiment = reader.get_experiment_by_name("demo").experiment_id
    assert len(reader.search_runs([experiment])) == 4


def test_a_resumed_trial_continues_its_run(root: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    values = {"training.n_critic": 1}
    record.append("trial_started", trial="00001", values=values, ratio=4.0)
    record.append("trial_reported", trial="00001", epoch=1, figures={"val/fvu": 0.5}, checkpoint=None)
    record.append("trial_ended", trial="00001", state="failed", reason="node lost")
    record.append("trial_started", trial="00003", values=values, ratio=4.0)
    record.append("sweep_ended", state="interrupted", champions={}, artifacts=None, summary="")
    deliver(root)
    reader = client(root)
    cut_off = runs(reader)["00003"]
    assert (cut_off.info.status, cut_off.data.tags["tokconv.state"]) == ("KILLED", "interrupted")
    assert runs(reader, "sweep")["demo-001"].info.status == "KILLED"
    start_sweep(record)
    record.append("trial_started", trial="00001", values=values, ratio=4.0)
    deliver(root)
    run = runs(reader)["00001"]
    assert (run.info.status, run.data.tags["tokconv.reason"]) == ("RUNNING", "")
    assert runs(reader, "sweep")["demo-001"].info.status == "RUNNING"
    record.append("trial_reported", trial="00001", epoch=2, figures={"val/fvu": 0.4}, checkpoint=None)
    record.append("trial_ended", trial="00001", state="complete", reason="")
    deliver(root)
    assert runs(reader)["00001"].info.status == "FINISHED"
    assert delivered_points(reader) == recorded_points(record.path)


def test_a_server_that_is_down_delays_nothing_and_loses_nothing(root: Path, export: Path) -> None:
    messages: list[str] = []
    record = new_record(root)
    start_sweep(record)
    away = writer(root, f"http://user:secret@127.0.0.1:{free_port()}", messages)
    begun = time.monotonic()
    for uid in STATES:
        run_trial(record, uid)
    assert time.monotonic() - begun < 2
    while not messages:  # The first attempt imports MLflow.
        time.sleep(0.05)
    begun = time.monotonic()
    delivery = away.close(0.5)
    assert time.monotonic() - begun < 2
    assert not delivery.complete
    assert delivery.delivered == 0
    assert "29 of 29 events not delivered" in str(delivery)
    assert str(record.path) in str(delivery)
    assert "--resume" in str(delivery)
    assert len(messages) == 1
    assert "cannot be reached" in messages[0]
    assert "secret" not in messages[0] + str(delivery)
    deliver(root)
    assert delivered_points(client(root)) == recorded_points(record.path)


def test_after_random_failures_the_figures_are_exact(root: Path, export: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = client(root)
    flaky = Flaky(reader, random.Random(0))
    monkeypatch.setattr(mlflow_runs, "connect", lambda uri: flaky)
    monkeypatch.setattr(follower, "BATCH_EVENTS", 3)
    record = whole_sweep(root, export)
    deliver(root)
    assert flaky.failures > 0
    assert delivered_points(reader) == recorded_points(record.path)
    assert {uid: run.info.status for uid, run in runs(reader).items()} == {u: STATUS[s] for u, s in STATES.items()}
    assert len(reader.search_model_versions("name = 'tokconv-demo-2x2'")) == 1


def test_the_champion_is_registered_and_predicts_like_the_export(
    root: Path, export: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # MLflow also sets the environment variable, which later sweeps of this process would read.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "")
    whole_sweep(root, export)
    deliver(root)
    reader = client(root)
    version = reader.get_model_version_by_alias("tokconv-demo-2x2", "champion")
    assert version.tags.items() >= {"ratio": "4", "fvu": "0.05", "meets_targets": "true"}.items()
    assert version.run_id == runs(reader)["00000"].info.run_id
    files = [path.relative_to(root) for path in (root / "mlartifacts").rglob("*") if path.is_file()]
    assert not [file for file in files if file.suffix in (".pkl", ".pickle", ".pt", ".pth", ".bin")]
    (loaded := root.with_name("loaded")).mkdir()
    before = mlflow.get_tracking_uri()
    mlflow.set_tracking_uri(local_uri(root))
    try:
        # Without a folder of its own, MLflow 3.17 itself would unquote the path of a model that is on this machine.
        model = mlflow.pyfunc.load_model("models:/tokconv-demo-2x2@champion", dst_path=str(loaded))
    finally:
        mlflow.set_tracking_uri(before)
    tokens = np.random.default_rng(0).standard_normal((3, 16, 8), dtype=np.float32)
    with torch.inference_mode():
        expected = load_compressor(export)(torch.from_numpy(tokens)).numpy()
    assert np.array_equal(model.predict(tokens), expected)


def test_a_better_champion_takes_the_alias_and_an_older_sweep_does_not(
    root: Path, export: Path, tmp_path: Path
) -> None:
    def champion() -> str:
        return str(client(root).get_model_version_by_alias("tokconv-demo-2x2", "champion").run_id)

    record = whole_sweep(root, export)
    deliver(root)
    end_sweep(record, "00003", export, root / "report")
    deliver(root)
    assert champion() == runs(client(root))["00003"].info.run_id
    whole_sweep(tmp_path / "newer", export)
    deliver(tmp_path / "newer", local_uri(root))
    newest = champion()
    assert newest not in {run.info.run_id for run in runs_of_first_sweep(root)}
    (root / "mlflow.cursor").unlink()
    deliver(root)
    assert champion() == newest


def test_a_confirmation_is_a_run_of_its_own_kind_and_holds_the_model(root: Path, export: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00000")
    values = {"training.n_critic": 0, "training.seed": 7}
    record.append("trial_started", trial="c02-1", values=values, ratio=4.0, kind="confirm", confirms="00000")
    record.append("trial_reported", trial="c02-1", epoch=1, figures={"val/fvu": 0.1}, checkpoint=None)
    record.append("trial_ended", trial="c02-1", state="complete", reason="")
    end_sweep(record, "00000", export, root / "report", run="c02-1")
    deliver(root)
    reader = client(root)
    assert list(runs(reader)) == ["00000"]
    [run] = runs(reader, "confirm").values()
    assert run.data.tags["tokconv.trial_uid"] == "demo-001/c02-1"
    assert run.data.tags["tokconv.evidence.fidelity"] == "proven"
    assert run.data.params.items() >= {"training.seed": "7", "confirms": "00000"}.items()
    assert reader.get_model_version_by_alias("tokconv-demo-2x2", "champion").run_id == run.info.run_id
    parent = runs(reader, "sweep")["demo-001"]
    assert parent.data.tags["tokconv.evidence.2x2.fidelity"] == "proven, 3 seeds"


def test_a_champion_no_longer_proven_loses_the_alias_and_an_unproven_one_gets_none(root: Path, export: Path) -> None:
    def alias() -> str | None:
        [model] = client(root).search_registered_models("name = 'tokconv-demo-2x2'")
        return model.aliases.get("champion")

    record = whole_sweep(root, export)
    deliver(root)
    assert alias() is not None
    for champions in ({}, {"2": {"trial": "00003", "run": "00003", "export": str(export), "meets_targets": True}}):
        for champion in champions.values():
            champion["evidence"] = "unproven"
        ended = {"champions": champions, "evidence": {"2": "unproven, 3 seeds: pooling is at least as good"}}
        record.append("sweep_ended", state="finished", artifacts=None, summary="", **ended)
        deliver(root)
        assert alias() is None
    tags = [version.tags["tokconv.evidence.fidelity"] for version in client(root).search_model_versions("")]
    assert sorted(tags) == ["proven", "unproven"]


def test_a_run_that_wins_twice_is_one_version_with_an_alias_per_purpose(root: Path, export: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    for uid in ("00000", "00003"):
        run_trial(record, uid)
    known = {"export": str(export), "meets_targets": True, "evidence": "proven", "epoch": 3}
    both = {purpose: {**known, "trial": "00003", "run": "00003"} for purpose in ("fidelity", "plug-in")}
    adapted = {**known, "trial": "00000", "run": "00000"}
    for champions in ({"2": {**both, "adapted": adapted}}, {"2": {"fidelity": both["fidelity"]}}):
        evidence = {"2": {"fidelity": "proven, 3 seeds", "plug-in": "of the day", "adapted": "beaten"}}
        winners = {"2": {champion["trial"]: "x: proven (3)" for champion in champions["2"].values()}}
        record.append(
            "sweep_ended", state="finished", champions=champions, evidence=evidence, winners=winners, artifacts=None
        )
        deliver(root)
        reader = client(root)
        [model] = reader.search_registered_models("name = 'tokconv-demo-2x2'")
        found = {alias: reader.get_model_version(model.name, version) for alias, version in model.aliases.items()}
        of_alias = {alias: version.run_id for alias, version in found.items()}
        twice, once = (runs(reader)[uid].info.run_id for uid in ("00003", "00000"))
        assert len(reader.search_model_versions("")) == 2
        if "adapted" in champions["2"]:
            assert of_alias == {"fidelity": twice, "champion": twice, "plug-in": twice, "adapted": once}
            assert found["plug-in"].tags["tokconv.purposes"] == "fidelity plug-in"
            assert runs(reader)["00000"].data.tags["tokconv.champion"] == "x: proven (3)"
        else:
            assert of_alias == {"fidelity": twice, "champion": twice}
            assert runs(reader)["00000"].data.tags["tokconv.champion"] == ""
    record.append("sweep_ended", state="finished", champions={}, evidence={}, winners={"2": {}}, artifacts=None)
    deliver(root)
    assert [runs(client(root))[uid].data.tags["tokconv.champion"] for uid in ("00000", "00003")] == ["", ""]


def test_a_record_from_before_confirmation_is_delivered_as_unconfirmed(root: Path, export: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00000")
    old = {"2": {"trial": "00000", "export": str(export), "meets_targets": True}}
    record.append("sweep_ended", state="finished", champions=old, artifacts=None, summary="")
    deliver(root)
    assert runs(client(root))["00000"].data.tags["tokconv.evidence.fidelity"] == "unconfirmed"


def test_files_removed_meanwhile_are_named_and_delay_nothing(root: Path, tmp_path: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00000")
    record.append("trial_artifacts", trial="00000", path=str(tmp_path / "gone"))
    end_sweep(record, "00000", tmp_path / "gone", root / "report")
    deliver(root)
    run = runs(client(root))["00000"]
    assert run.data.tags["tokconv.missing"] == str(tmp_path / "gone")
    assert run.info.status == "FINISHED"


def test_events_appended_during_delivery_arrive(root: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    following = writer(root)
    for uid in STATES:
        run_trial(record, uid)
        time.sleep(0.1)
    assert following.close(60).complete
    assert delivered_points(client(root)) == recorded_points(record.path)


@pytest.mark.parametrize("moved_by", [-1, 1, 10_000])
def test_a_cursor_within_a_line_delivers_everything_again(root: Path, export: Path, moved_by: int) -> None:
    """As after the record was edited, or restored from a backup."""
    delivered: list[object] = []

    class Willing:
        def open(self) -> str:
            return "here"

        def deliver(self, events: Sequence[object]) -> None:
            delivered.extend(events)

    def follow() -> follower.Delivery:
        delivered.clear()
        return follower.Follower(record.path, Willing(), cursor=root / "c", name="it", on_message=print).close(20)

    record = whole_sweep(root, export)
    assert follow().complete
    every = list(delivered)
    assert follow().complete
    assert not delivered
    cursor = json.loads((root / "c").read_text())
    (root / "c").write_text(json.dumps({**cursor, "offset": cursor["offset"] + moved_by}))
    assert follow().complete
    assert delivered == every


def test_events_that_are_not_delivered_always_have_a_reason(root: Path) -> None:
    class Silent:
        def open(self) -> str:
            time.sleep(5)
            return ""

        def deliver(self, events: object) -> None: ...

    record = new_record(root)
    start_sweep(record)
    silent = follower.Follower(record.path, Silent(), cursor=root / "c", name="MLflow", on_message=print)
    assert "1 of 1 events not delivered (no answer within 0.2 s);" in str(silent.close(0.2))


def test_without_events_mlflow_is_not_contacted(root: Path) -> None:
    assert writer(root, "http://127.0.0.1:1").close(5).complete


def test_the_server_of_the_ui_serves_this_machine_only(root: Path) -> None:
    words = server_command(local_uri(root), root, 5001)
    assert words[words.index("--host") + 1 :][:3] == ["127.0.0.1", "--port", "5001"]
    assert words[words.index("--backend-store-uri") + 1] == local_uri(root)
    assert path_of(words[-1]) == root / "mlartifacts"


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


def test_check_tracking_reports_what_it_did(root: Path) -> None:
    assert mlflow.__version__ in check_tracking(root)


def test_the_view_is_left_out_for_other_releases_of_mlflow() -> None:
    assert view_tags("3.18.0", []) == {}
    assert view_tags("3.1.0", []) == {}
    assert view_url("http://host:1/", "7", "3.18.0") == "http://host:1/#/experiments/7/runs"
    assert view_url("http://host:1/", "7", "3.17.2") == "http://host:1/#/experiments/7/runs?viewStateShareKey=tokconv"


@pytest.mark.slow
def test_a_slow_server_that_answers_500_gets_everything_once(root: Path, export: Path) -> None:
    server = Server(root, free_port())
    proxy = Proxy(server.uri, free_port(), share=0.1, delay=0.02)
    record = new_record(root)
    messages: list[str] = []
    try:
        start_sweep(record)
        following = writer(root, proxy.uri, messages)
        for number in range(4):
            run_trial(record, f"{number:05d}")
        record.append("trial_artifacts", trial="00000", path=str(export.parent))
        end_sweep(record, "00000", export, root / "report")
        delivery = following.close(150)
        assert delivery.complete, delivery
        assert proxy.failures > 3
        reader = client(root, server.uri)
        assert delivered_points(reader) == recorded_points(record.path)
        assert reader.get_model_version_by_alias("tokconv-demo-2x2", "champion").version
        assert len(messages) == 1
    finally:
        proxy.close()
        server.kill()


def test_a_run_that_wins_at_two_epochs_is_a_version_for_each(root: Path, export: Path) -> None:
    record, best = new_record(root), write_export(root / "best", seed=1)
    start_sweep(record)
    run_trial(record, "00003")
    known = {"trial": "00003", "run": "00003", "meets_targets": True, "evidence": "proven"}
    champions = {
        "fidelity": {**known, "export": str(best), "epoch": 2},
        "plug-in": {**known, "export": str(export), "epoch": 3},
    }
    for _ in range(2):
        record.append("sweep_ended", state="finished", champions={"2": champions}, evidence={}, artifacts=None)
        deliver(root)
    reader = client(root)
    assert len(reader.search_model_versions("")) == 2
    for alias, folder, epoch in (("champion", best, "2"), ("plug-in", export, "3")):
        version = reader.get_model_version_by_alias("tokconv-demo-2x2", alias)
        assert version.tags["tokconv.epoch"] == epoch
        held = next(Path(path_of(version.source)).rglob(FILES["compressor"]))
        assert held.read_bytes() == (folder / FILES["compressor"]).read_bytes()

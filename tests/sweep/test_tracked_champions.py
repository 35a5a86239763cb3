"""Champions in MLflow's registry: their versions, their evidence, and which of them has an alias."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from support.artefacts import write_export
from support.tracked import (
    client,
    deliver,
    end_sweep,
    new_record,
    run_trial,
    runs,
    runs_of_first_sweep,
    start_sweep,
    whole_sweep,
)

from tokconv import load_compressor
from tokconv.exports.artefact import FILES
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.system.uris import path_of

mlflow = pytest.importorskip("mlflow")
pytestmark = pytest.mark.usefixtures("tracked_quickly")


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


def test_a_record_from_before_confirmation_is_delivered_as_unconfirmed(root: Path, export: Path) -> None:
    record = new_record(root)
    start_sweep(record)
    run_trial(record, "00000")
    old = {"2": {"trial": "00000", "export": str(export), "meets_targets": True}}
    record.append("sweep_ended", state="finished", champions=old, artifacts=None, summary="")
    deliver(root)
    assert runs(client(root))["00000"].data.tags["tokconv.evidence.fidelity"] == "unconfirmed"

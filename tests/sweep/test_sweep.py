"""Whole small sweeps on real Ray, Optuna and MLflow: results, equality of runners, failures, resuming."""

from __future__ import annotations

import json
from pathlib import Path

import optuna
import pytest
import torch
from mlflow import MlflowClient
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from support.one_ray import one_ray
from support.sweeping import DIM, TOKEN_GRID, Driver, champions, events, spec, write_spec
from support.towers import ARCHITECTURES, write_architecture

import tokconv
from tokconv.config.overrides import with_values
from tokconv.encoding.console import encode_and_print
from tokconv.errors import SpecError, SweepError
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.log import Record
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import load_spec, parse_spec
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.system.uris import path_of
from tokconv.training.loop import run_trial
from tokconv.training.runtime import LocalRuntime

pytestmark = [
    pytest.mark.filterwarnings("ignore"),  # of Ray, MLflow and SQLAlchemy, in their own threads
    pytest.mark.timeout(600),
]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps")


@pytest.mark.slow
def test_a_sweep_finds_exports_and_registers_a_champion_at_every_grid(root: Path) -> None:
    plain = spec(root, name="tiny")
    plain["search"]["training.learning_rate"] = {"log": [1e-4, 1e-2]}
    # Four epochs may or may not beat every baseline; the test is about everything that a sweep writes.
    with one_ray():
        result = run_sweep(parse_spec(plain), allow_unproven=True)
    assert [trial.state for trial in result.trials.values()] == ["complete"] * 4
    assert [verdict.grid for verdict in result.verdicts] == [4, 8]
    for verdict in result.verdicts:
        assert verdict.champion is not None
        compressor = tokconv.load_compressor(result.directory, grid=verdict.grid, purpose="fidelity")
        assert compressor(torch.zeros(1, TOKEN_GRID**2, DIM)).shape == (1, verdict.grid**2, DIM)
    for name in ("results.csv", "champions.json", "pareto.png", "learning_curves.png"):
        assert (result.directory / "report" / name).stat().st_size > 0

    client = MlflowClient(local_uri(root / "runs"))
    experiment = client.get_experiment_by_name("tiny")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id], "tags.`tokconv.kind` = 'trial'")
    assert len(runs) == 4
    by_uid = {run.data.tags["tokconv.trial_uid"].rsplit("/", 1)[-1]: run for run in runs}
    for uid, trial in result.trials.items():
        run = by_uid[uid]
        assert run.info.status == "FINISHED"
        assert float(run.data.params["compression_ratio"]) == run.data.metrics["compression_ratio"] == trial.ratio
        assert run.data.metrics["val/fvu"] == pytest.approx(trial.figures["val/fvu"], rel=1e-5)
        assert len(client.get_metric_history(run.info.run_id, "val/fvu")) == 5
        assert {item.path for item in client.list_artifacts(run.info.run_id)} >= {"compressor", "reconstruction.png"}
    for grid in (4, 8):
        won = {purpose: one["trial"] for purpose, one in champions(result.directory)[str(grid)].items()}
        assert {"fidelity", "adapted"} <= won.keys()
        versions = client.search_model_versions(f"name = 'tokconv-tiny-{grid}x{grid}'")
        assert {version.run_id for version in versions} == {by_uid[uid].info.run_id for uid in won.values()}
        for version in versions:
            # One seed proves nothing: the model is registered, but gets no alias.
            statuses = {version.tags[f"tokconv.evidence.{name}"] for name in version.tags["tokconv.purposes"].split()}
            assert statuses <= {"unconfirmed", "unproven"}
            assert not version.aliases
        for uid in won.values():
            assert by_uid[uid].data.tags["tokconv.champion"]


@pytest.mark.slow
def test_early_stopped_trials_are_pruned_and_never_champions(root: Path) -> None:
    changes = {
        "early_stopping": {"min_epochs": 1, "reduction": 2},
        "search": {"training.learning_rate": {"choice": [1e-3, 1e-1]}},
        "trials": 4,
    }
    with one_ray():
        result = run_sweep(parse_spec(spec(root, name="halving", **changes)))
    states = [trial.state for trial in result.trials.values()]
    assert "pruned" in states
    assert "complete" in states
    study = _study(result.directory, "halving")
    for trial in study.trials:
        state = result.trials[f"{trial.number:05d}"].state
        assert trial.state.name == {"complete": "COMPLETE", "pruned": "PRUNED"}[state]
    assert all(t.state.name == "COMPLETE" for t in study.best_trials)


@pytest.mark.slow
def test_a_killed_torch_trainer_goes_on_from_its_checkpoint(root: Path, tmp_path: Path) -> None:
    """It has the figures of a run without Ray that nobody killed.

    Several trials, inline trials and checkpoints at a URL: see test_remote_sweep.py.
    """
    name = "killed"
    path = write_spec(root, name=name, trials=1, resources={"runner": "torch_trainer"}, base=["training.epochs=8"])
    directory = root / "runs" / "sweeps" / f"{name}-001"
    driver = Driver(path, tmp_path)
    driver.killed_when(lambda: _reached(directory, "00000"))
    before = Record(directory / "events.jsonl")
    assert before.trials["00000"].state == "running"
    before.close()
    with one_ray():
        driver.resume()
    record = Record(directory / "events.jsonl")
    [trial] = record.trials.values()
    assert trial.state == "complete"
    assert [row["epoch"] for row in trial.history] == list(range(9))
    config = with_values(load_spec(directory / "spec.yaml").base_config(), trial.values)
    plain = run_trial(config, encode_and_print(config), LocalRuntime(tmp_path / "plain", device="cpu"))
    assert _timeless(trial.history) == _timeless(plain.history)
    starts = [event["trial"] for event in events(directory) if event["event"] == "trial_started"]
    assert starts == ["00000", "00000"]
    assert {t.state.name for t in _study(directory, name).trials} == {"COMPLETE"}
    client = MlflowClient(local_uri(root / "runs"))
    experiment = client.get_experiment_by_name(name)
    assert experiment is not None
    [run] = client.search_runs([experiment.experiment_id], "tags.`tokconv.kind` = 'trial'")
    assert run.info.status == "FINISHED"
    record.close()


@pytest.mark.slow
def test_a_sweep_runs_on_photographs_and_a_narrow_vit_b_16(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["openai/clip-vit-base-patch16"]
    tower = write_architecture(tmp_path / "vit-b-16", architecture)
    plain = spec(
        tmp_path, name="photographs", trials=2, search={"model.compressor.output_grid_size": {"choice": [7, 10]}}
    )
    own = ("data.subset", "data.store", "model.clip", "training.epochs")
    base = [item for item in plain["base"] if not item.startswith(own)]
    plain["base"] = [
        *base,
        "data=photographs",
        "data.subset=24",
        f"data.store={tmp_path}/store",
        f"model.clip.model_name={tower}",
        "training.epochs=1",
    ]
    # One epoch on an untrained tower beats no baseline; the test is about the whole chain.
    with one_ray():
        result = run_sweep(parse_spec(plain), allow_unproven=True)
    assert [trial.state for trial in result.trials.values()] == ["complete"] * 2
    for verdict in result.verdicts:
        assert verdict.champion is not None
        assert "val/probe_accuracy" not in verdict.champion.figures
        compressor = tokconv.load_compressor(result.directory, grid=verdict.grid, purpose="fidelity")
        tokens = torch.zeros(1, 196, architecture.dim)
        assert compressor(tokens).shape == (1, verdict.grid**2, architecture.dim)
    plain["objectives"] = [{"metric": "val/probe_kept", "mode": "max"}]
    with pytest.raises(SpecError, match="needs labels"):
        run_sweep(parse_spec(plain))


@pytest.mark.slow
def test_the_budget_of_a_finished_sweep_can_grow_after_its_project_was_moved(tmp_path: Path) -> None:
    before, root = tmp_path / "before", tmp_path / "My%20Project"
    with one_ray():
        first = run_sweep(parse_spec(spec(before, name="grows", trials=1)), allow_unproven=True)
    # Records once held whole paths of checkpoints.
    record = first.directory / "events.jsonl"
    record.write_text(record.read_text().replace('"trials/00000', f'"{first.directory}/trials/00000'))
    # All of that record was delivered.
    cursor = first.directory / "mlflow.cursor"
    cursor.write_text(json.dumps({**json.loads(cursor.read_text()), "offset": record.stat().st_size}))
    before.rename(root)
    with one_ray():
        more = run_sweep(parse_spec(spec(root, name="grows", trials=2)), resume=True, allow_unproven=True)
    assert more.directory == root / "runs" / "sweeps" / first.directory.name
    assert [path.name for path in tmp_path.iterdir()] == [root.name]
    assert len(more.trials) == 2
    client = MlflowClient(local_uri(root / "runs"))
    tracked = client.search_runs(["1"], "tags.`tokconv.kind` = 'trial'")
    assert len(tracked) == 2
    for run in tracked:
        assert path_of(run.info.artifact_uri).is_relative_to(root)
        assert client.list_artifacts(run.info.run_id, "compressor")
    search = {**spec(root)["search"], "model.compressor.output_grid_size": {"choice": [8]}}
    with one_ray():
        narrower = run_sweep(parse_spec(spec(root, name="grows", trials=4, search=search)), resume=True)
    grids = [trial.values["model.compressor.output_grid_size"] for trial in narrower.trials.values()]
    assert grids[2:] == [8, 8]
    assert 4 in grids
    assert {verdict.grid for verdict in narrower.verdicts} == {4, 8}, "earlier trials stay in the table"
    with pytest.raises(SweepError, match="search: differs"):
        run_sweep(parse_spec(spec(root, name="grows", search={})), resume=True)


def test_a_grid_without_trials_has_no_champion(tmp_path: Path) -> None:
    assert judge([], parse_spec(spec(tmp_path)).rules, TOKEN_GRID, {4: {}})[0].champion is None


def _timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "train/images_per_second"} for row in history]


def _reached(directory: Path, uid: str) -> bool:
    """Return whether this trial has reported."""
    return any(event["event"] == "trial_reported" and event["trial"] == uid for event in events(directory))


def _study(directory: Path, name: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)

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
from support.stores import write_store
from support.sweeping import DIM, TOKEN_GRID, Driver, champions, events, spec, write_spec
from support.towers import ARCHITECTURES, write_architecture

import tokconv
from tokconv.config.overrides import with_values
from tokconv.encoding.console import encode_and_print
from tokconv.errors import ConfigError, SpecError, SweepError
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record import checks
from tokconv.sweep.record.checks import check_figures, check_same_experiment, check_same_store, figures_of
from tokconv.sweep.record.events import Record
from tokconv.sweep.record.remote import Root
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import load_spec, parse_spec, to_yaml
from tokconv.sweep.tracking.mlflow_connection import local_uri
from tokconv.system.files import write_text
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


def test_impossible_sweeps_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="between 1 and the token grid, 12"):
        run_sweep(parse_spec(spec(tmp_path, search={"model.compressor.output_grid_size": {"choice": [4, 13]}})))
    with pytest.raises(SweepError, match="no run of 'tiny' to resume"):
        run_sweep(parse_spec(spec(tmp_path)), resume=True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("protocol", [None, PROTOCOL + 1])
def test_a_sweep_judged_by_another_protocol_is_not_resumed(tmp_path: Path, protocol: int | None) -> None:
    """The first version of the record did not name its protocol."""
    tiny = parse_spec(spec(tmp_path))
    directory = Root(tmp_path / "runs").new("tiny")
    write_text(directory.spec, to_yaml(tiny))
    record = Record(directory.events)
    record.append("sweep_started", sweep=directory.name, **({} if protocol is None else {"protocol": protocol}))
    record.close()
    with pytest.raises(SweepError, match=rf"evaluation protocol {protocol or 1}, this .* without --resume"):
        run_sweep(tiny, resume=True)


def test_a_resumed_sweep_may_have_its_data_elsewhere_if_they_are_the_same(tmp_path: Path) -> None:
    before = spec(tmp_path, base=["data=folder", "data.root=/old/photos", f"data.store={tmp_path}/store"])
    now = {**before, "base": [*before["base"], "data.root=/new/photos", "data.store=/new/store"]}
    check_same_experiment(parse_spec(now), parse_spec(before))
    with pytest.raises(SweepError, match="base: differs"):
        check_same_experiment(parse_spec({**now, "base": [*now["base"], "data.subset=9"]}), parse_spec(before))
    store, directory = write_store(tmp_path / "store"), Root(tmp_path / "runs").new("tiny")
    record = Record(directory.events)
    record.append("sweep_started", sweep=directory.name, store_fingerprint=store.fingerprint)
    check_same_store(directory, store)
    record.close()
    with pytest.raises(SweepError, match=r"trained on other tokens than .*other holds; restore its images"):
        check_same_store(directory, write_store(tmp_path / "other", num_images=30))


@pytest.mark.parametrize(
    ("metric", "num_classes", "message"),
    [
        ("val/reader_kept", 0, "needs labels"),
        ("val/cka", 2, "needs 12 held-out images; .* 10 held-out"),
        ("val/auc_grid", 2, "needs 20 training and 20 held-out images; .* 30 training and 10 held-out"),
    ],
)
def test_objectives_that_the_store_cannot_measure_are_refused(
    tmp_path: Path, metric: str, num_classes: int, message: str
) -> None:
    store = write_store(tmp_path / "store", num_classes=num_classes)
    plain = spec(tmp_path, objectives=[{"metric": metric, "mode": "max"}])
    with pytest.raises(SpecError, match=message):
        check_figures(parse_spec(plain), store)


def test_a_probe_needs_a_label_among_the_held_out_images(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", num_images=64)
    judged = parse_spec(spec(tmp_path, objectives=[{"metric": "val/probe_accuracy", "mode": "max"}]))
    check_figures(judged, store)
    assert store.labels is not None
    store.labels[store.val_indices] = -1
    with pytest.raises(SpecError, match=r"needs labels.* 0 of these with labels"):
        check_figures(judged, store)


def test_what_no_reader_recognises_is_no_objective(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of nothing does not exist; by default such a sweep is guided by likeness."""
    store = write_store(tmp_path / "store", num_images=160)
    kept = parse_spec(spec(tmp_path, objectives=[{"metric": "val/reader_kept", "mode": "max"}]))
    check_figures(kept, store)
    monkeypatch.setattr(checks, "can_be_read", lambda store, images: False)
    with pytest.raises(SpecError, match=r"40 of these with labels, none of which a reader recognises"):
        check_figures(kept, store)
    plain = parse_spec({"name": "tiny", "trials": 1})
    assert "val/auc_token" in plain.with_objectives(figures_of(plain, store)).judged_by


def test_a_grid_without_trials_has_no_champion(tmp_path: Path) -> None:
    assert judge([], parse_spec(spec(tmp_path)).rules, TOKEN_GRID, {4: {}})[0].champion is None


def test_a_purpose_that_the_store_cannot_have_is_refused_if_it_is_named(tmp_path: Path) -> None:
    store = write_store(tmp_path / "store", num_classes=0, num_images=160)
    check_figures(parse_spec(spec(tmp_path, champions={"fidelity": None, "plug-in": {}})), store)
    with pytest.raises(SpecError, match=r"champions.adapted: left out, there is no val/adapted_kept"):
        check_figures(parse_spec(spec(tmp_path, champions={"adapted": None})), store)


def _timeless(history: list[dict[str, float]]) -> list[dict[str, float]]:
    return [{name: value for name, value in row.items() if name != "train/images_per_second"} for row in history]


def _reached(directory: Path, uid: str) -> bool:
    """Return whether this trial has reported."""
    return any(event["event"] == "trial_reported" and event["trial"] == uid for event in events(directory))


def _study(directory: Path, name: str) -> optuna.Study:
    storage = JournalStorage(JournalFileBackend(str(directory / "study.journal")))
    return optuna.load_study(study_name=name, storage=storage)

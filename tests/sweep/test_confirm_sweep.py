"""Confirmations in whole sweeps on real Ray: a killed driver resumes them, and a refused champion leaves nothing."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException
from support.one_ray import one_ray
from support.sweeping import TOKEN_GRID, WINS, Driver, events, spec, write_spec

import tokconv
from tokconv.sweep.judge.evidence import SEED_KEY, UNPROVEN
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.log import Record
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.tracking.mlflow_connection import local_uri

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore"),  # of Ray, MLflow and SQLAlchemy, in their own threads
    pytest.mark.timeout(600),
]


def started(directory: Path) -> list[str]:
    """Return the uids of the confirmations in the order of their starts."""
    return [event["trial"] for event in events(directory) if event.get("kind") == "confirm"]


def complete(directory: Path) -> set[str]:
    return {e["trial"] for e in events(directory) if e["event"] == "trial_ended" and e["trial"].startswith("c")}


def _fidelity(directory: Path) -> dict[str, Any]:
    champions: dict[str, Any] = json.loads((directory / "report" / "champions.json").read_text())["8"]["champions"]
    found: dict[str, Any] = champions["fidelity"]
    return found


def test_a_driver_killed_while_confirming_goes_on_there(tmp_path: Path) -> None:
    search = {"model.compressor.output_grid_size": {"choice": [6, 8]}}
    early = {"min_epochs": 1, "reduction": 2}
    path = write_spec(
        tmp_path,
        name="repeats",
        search=search,
        trials=2,
        concurrency=2,
        confirm={"seeds": 2},
        early_stopping=early,
        base=[*WINS, "training.epochs=12"],
        champions={"fidelity": {}},
    )
    directory = tmp_path / "runs" / "sweeps" / "repeats-001"
    driver = Driver(path, tmp_path, "--allow-unproven")
    # One confirmation has ended; others run or wait.
    driver.killed_when(lambda: bool(started(directory) and complete(directory)))
    before = Record(directory / "events.jsonl")
    done = {uid for uid, run in before.confirmations.items() if run.state == "complete"}
    searched = {uid: trial.history for uid, trial in before.trials.items()}
    before.close()
    assert 1 <= len(done) < 4
    with one_ray():
        driver.resume()
    record = Record(directory / "events.jsonl")
    assert {uid: trial.history for uid, trial in record.trials.items()} == searched
    runs = record.confirmations
    assert sorted(runs) == ["c06-1", "c06-2", "c08-1", "c08-2"]
    assert {run.state for run in runs.values()} == {"complete"}
    # Confirmations have no rungs: each ran all of its epochs, once.
    assert all([row["epoch"] for row in run.history] == list(range(13)) for run in runs.values())
    for winner in ("00000", "00001"):
        assert sorted(run.values[SEED_KEY] for run in runs.values() if run.confirms == winner) == [1, 2]
    starts = Counter(started(directory))
    assert all(starts[uid] == 1 for uid in done)
    assert set(starts) == set(runs)
    record.close()

    client = MlflowClient(local_uri(tmp_path / "runs"))
    experiment = client.get_experiment_by_name("repeats")
    assert experiment is not None
    for kind, count in (("trial", 2), ("confirm", 4)):
        found = client.search_runs([experiment.experiment_id], f"tags.`tokconv.kind` = '{kind}'")
        assert [run.info.status for run in found] == ["FINISHED"] * count


def test_a_winner_that_a_baseline_matches_leaves_nothing_unless_allowed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The learning rate is so high that training ruins the good start."""
    plain = spec(
        tmp_path,
        name="spoilt",
        search={"model.compressor.output_grid_size": {"choice": [8]}},
        trials=1,
        confirm={"seeds": 2},
        base=["training.learning_rate=0.3"],
        champions={"fidelity": {}},
    )
    with one_ray():
        result = run_sweep(parse_spec(plain))
    [verdict] = result.verdicts
    assert verdict.evidence is not None
    assert verdict.evidence.status == UNPROVEN
    last = capsys.readouterr().out.splitlines()[-2:]
    assert last[0].startswith("NO CHAMPION: fidelity at 8x8, nothing exported or registered: ")
    assert last[1].endswith("--resume --allow-unproven")
    out = result.directory / "champions" / "grid-08" / "fidelity"
    assert not out.exists()
    client = MlflowClient(local_uri(tmp_path / "runs"))
    assert not client.search_model_versions("")
    champion = _fidelity(result.directory)
    assert champion["export"] is None
    assert champion["evidence"]["status"] == UNPROVEN

    allowed = run_sweep(parse_spec(plain), resume=True, allow_unproven=True)
    # Its own run in the search is not better than its start, a closed form.
    assert not result.confirmations
    assert not allowed.confirmations
    assert "UNPROVEN: fidelity at 8x8, exported because of --allow-unproven" in capsys.readouterr().out
    assert tokconv.load_compressor(out).output_grid_size == 8
    assert "- Evidence: unproven, not confirmed: " in (out / "README.md").read_text()
    champion = _fidelity(result.directory)
    assert champion["export"] == "champions/grid-08/fidelity"
    assert [version.tags["tokconv.evidence.fidelity"] for version in client.search_model_versions("")] == [UNPROVEN]
    with pytest.raises(MlflowException):
        client.get_model_version_by_alias("tokconv-spoilt-8x8", "champion")

    run_sweep(parse_spec(plain), resume=True)
    assert not out.exists()


def test_a_longer_search_with_another_winner_confirms_that_one(tmp_path: Path) -> None:
    """The confirmations of the first winner stay in the record and count only for that winner."""
    plain = spec(
        tmp_path,
        name="longer",
        search={"training.learning_rate": {"choice": [1e-4, 3e-4]}},
        sampler={"kind": "grid", "seed": 0},
        trials=1,
        confirm={"seeds": 2},
        base=[*WINS, "training.learning_rate=1e-4"],
        champions={"fidelity": {}},
    )
    with one_ray():
        first = run_sweep(parse_spec(plain), allow_unproven=True)
        longer = run_sweep(parse_spec({**plain, "trials": 2}), resume=True, allow_unproven=True)
    assert longer.trials.keys() == {"00000", "00001"}
    [before], [after] = first.verdicts, longer.verdicts
    assert before.champion is not None
    assert after.champion is not None
    winners = Counter(run.confirms for run in longer.confirmations.values())
    assert winners == Counter({before.champion.uid: 2}) | Counter({after.champion.uid: 2})
    # The judgement of the search's own trials is the same with and without confirmations.
    unconfirmed = judge(longer.trials.values(), parse_spec(plain).rules, TOKEN_GRID, {after.grid: after.baselines})
    assert unconfirmed[0].champion == after.champion
    assert unconfirmed[0].front == after.front

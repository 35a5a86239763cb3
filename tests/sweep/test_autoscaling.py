"""A sweep on an autoscaling cluster: from no workers to two and back, with drivers on the head and a lost node."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.clusters import Head, head
from support.sweeping import events, write_spec

from tokconv.sweep.record.events import Event
from tokconv.sweep.record.log import Record
from tokconv.system.ray_cluster import DRIVER_RESOURCE

EPOCHS = 16
WORKERS = {"worker": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": 2}}


@pytest.fixture
def cluster() -> Iterator[Head]:
    # The head has no CPU, so only drivers can run there; every worker node holds one trial.
    with head(cpus=0, resources={DRIVER_RESOURCE: 100}, workers=WORKERS) as running:
        yield running


def _workers(cluster: Head) -> set[str]:
    return {node["node_id"] for node in cluster.alive("nodes") if not node["is_head_node"]}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_grows_the_cluster_survives_a_lost_node_and_gives_the_nodes_back(cluster: Head, tmp_path: Path) -> None:
    spec = write_spec(
        tmp_path,
        trials=2,
        concurrency=2,
        resources={"runner": "torch_trainer", "cpus_per_worker": 1},
        base=[f"training.epochs={EPOCHS}"],
    )
    directory = tmp_path / "runs" / "sweeps" / "tiny-001"
    (head_node,) = {node["node_id"] for node in cluster.alive("nodes")}
    assert not _workers(cluster)

    with (tmp_path / "log").open("w") as log:
        driver = subprocess.Popen(
            [sys.executable, "-m", "tokconv.cli.main", "sweep", str(spec)],
            cwd=tmp_path,
            env=dict(cluster.environment),
            stdout=log,
            stderr=log,
        )
    seen: set[str] = set()
    places: dict[str, set[str]] = {}
    killed_after: dict[str, int] = {}
    lost = ""
    deadline = time.monotonic() + 400
    while driver.poll() is None:
        assert time.monotonic() < deadline, (tmp_path / "log").read_text()
        seen |= _workers(cluster)
        actors = cluster.alive("actors")
        for actor in actors:
            # Ray reports the name with or without the function that defines the class.
            places.setdefault(actor["class_name"].rsplit(".", 1)[-1], set()).add(actor["node_id"])
        epochs = _epochs(directory)
        if not lost and len(seen) == 2 and len(epochs) == 2 and min(epochs.values()) >= 2:
            lost = next(actor["node_id"] for actor in actors if actor["class_name"].endswith("RayTrainWorker"))
            killed_after = epochs
            cluster.kill_node(lost)
        time.sleep(0.5)

    print({name: sorted(node[-2:] for node in nodes) for name, nodes in places.items()})
    assert driver.returncode == 0, (tmp_path / "log").read_text()
    assert lost
    assert len(seen) >= 2
    assert places["ImplicitFunc"] == places["TrainController"] == places["_QueueActor"] == {head_node}
    assert places["RayTrainWorker"] <= seen
    assert len(places["RayTrainWorker"]) >= 2
    record = Record(directory / "events.jsonl")
    assert [trial.state for trial in record.trials.values()] == ["complete"] * 2
    for trial in record.trials.values():
        assert [row["epoch"] for row in trial.history] == list(range(EPOCHS + 1))
    record.close()
    # The trial that lost its worker went on from its checkpoint: no epoch before the last known one was run again.
    for uid, reached in killed_after.items():
        later = [event["epoch"] for event in _reports(directory) if event["trial"] == uid][reached + 1 :]
        assert min(later, default=EPOCHS) >= reached

    while _workers(cluster):
        assert time.monotonic() < deadline
        time.sleep(1)


def _reports(directory: Path) -> list[Event]:
    return [event for event in events(directory) if event["event"] == "trial_reported"]


def _epochs(directory: Path) -> dict[str, int]:
    """Return the last epoch that every trial has reported."""
    return {event["trial"]: event["epoch"] for event in _reports(directory)}

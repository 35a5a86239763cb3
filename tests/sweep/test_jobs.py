"""Sweeps submitted to a real Ray head with token authentication are refused, uploaded, stopped and resumed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.clusters import Head, head
from support.sweeping import events, spec, write_spec

import tokconv
from tokconv.cli.main import main
from tokconv.errors import SpecError, SweepError
from tokconv.sweep.jobs import check_spec, submit
from tokconv.sweep.record.log import Record
from tokconv.sweep.spec.file import parse_spec
from tokconv.system.ray_cluster import check_outlives_job

EPOCHS = 64
ROOT = Path(tokconv.__file__).parents[1]


def test_a_sweep_whose_results_would_die_with_the_job_is_refused(tmp_path: Path) -> None:
    plain = spec(tmp_path)
    check_spec(parse_spec(plain))
    check_spec(parse_spec({**plain, "base": [], "storage": str(tmp_path)}))
    for storage in (None, "runs", "~/runs"):
        with pytest.raises(SpecError, match=r"storage: .*every node sees"):
            check_spec(parse_spec({**plain, "storage": storage}))
    with pytest.raises(SpecError, match=r"data\.store: stores/x; "):
        check_spec(parse_spec({**plain, "base": ["data.store=stores/x"]}))
    for uri in ("http://host:5000", "sqlite:////shared/mlflow.db", "postgresql://host/mlflow"):
        check_spec(parse_spec({**plain, "tracking": {"uri": uri}}))
    with pytest.raises(SpecError, match=r"tracking\.uri: mlflow\.db; .*every node sees"):
        check_spec(parse_spec({**plain, "tracking": {"uri": "sqlite:///mlflow.db"}}))


def test_a_place_inside_the_uploaded_tree_is_refused() -> None:
    uploaded = Path("/tmp/ray/session/runtime_resources/working_dir_files/_ray_pkg_1/runs")
    with pytest.raises(SpecError, match=r"storage: .*which Ray deletes"):
        check_outlives_job(uploaded, "storage")
    check_outlives_job(Path("/shared/runs"), "storage")


def test_a_refused_submission_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_spec(tmp_path)
    checked = parse_spec(spec(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    with pytest.raises(SpecError, match="this file is outside"):
        submit("http://127.0.0.1:9", path, checked, [])
    monkeypatch.chdir(tmp_path)
    for address in ("http://127.0.0.1:9", "127.0.0.1:9"):
        with pytest.raises(SweepError, match=r"--submit .*127\.0\.0\.1:9: no Ray head answers there"):
            submit(address, path, checked, [])


def test_no_wait_needs_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", str(write_spec(tmp_path)), "--no-wait"]) == 2
    assert "--submit" in capsys.readouterr().err


@pytest.fixture(scope="module")
def cluster() -> Iterator[Head]:
    with head(cpus=2) as running:
        yield running


def _run(cluster: Head, *command: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=dict(cluster.environment), capture_output=True, text=True, check=False, timeout=240
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_job_without_its_token_is_refused(cluster: Head, tmp_path: Path) -> None:
    path = write_spec(tmp_path)
    bare = {name: value for name, value in cluster.environment.items() if not name.startswith("RAY_")}
    command = [sys.executable, "-m", "tokconv.cli.main", "sweep", path.name, "--submit", cluster.dashboard]
    for extra in ({}, {"RAY_AUTH_TOKEN": "wrong" * 8}):
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env={**bare, "HOME": str(tmp_path), **extra},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2
        assert "RAY_AUTH_TOKEN_PATH" in done.stderr
        assert "Traceback" not in done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_jobs_are_stopped_resumed_and_queued(cluster: Head, tmp_path: Path) -> None:
    here = tmp_path / "project"
    here.mkdir()
    for name, trials in (("first", 3), ("second", 1)):
        text = write_spec(tmp_path, name=name, trials=trials, base=[f"training.epochs={EPOCHS}"]).read_text()
        (here / f"{name}.yaml").write_text(text)
    sweep = [sys.executable, "-m", "tokconv.cli.main", "sweep"]
    at = ["--submit", cluster.dashboard]
    directory = tmp_path / "runs" / "sweeps" / "first-001"

    log = tmp_path / "first.log"
    with log.open("w") as file:
        following = subprocess.Popen(
            [*sweep, "first.yaml", *at], cwd=here, env=dict(cluster.environment), stdout=file, stderr=file
        )
    _wait(lambda: _count(directory, "trial_reported") >= 1, following, log)
    queued = _run(cluster, *sweep, "second.yaml", *at, "--no-wait", cwd=here)
    assert queued.returncode == 0, queued.stdout + queued.stderr
    (beside,) = re.findall(r"job (second-[0-9a-f]{8}) is submitted", queued.stdout)
    _wait(lambda: _count(directory, "trial_ended") >= 1, following, log)
    (job,) = re.findall(r"job (first-[0-9a-f]{8}) is submitted", log.read_text())
    stopped = _run(cluster, "ray", "job", "stop", "--address", cluster.dashboard, job, cwd=here)
    assert stopped.returncode == 0, stopped.stdout + stopped.stderr
    assert following.wait(timeout=60) == 1
    output = log.read_text()
    assert "trial 00000 started" in output  # the job's own lines were streamed
    assert "go on with: --resume" in output  # the driver had time to print how to go on
    assert f"job {job}: stopped" in output
    assert _count(directory, "trial_ended") < 3

    again = _run(cluster, *sweep, "first.yaml", *at, "--resume", cwd=here)
    assert again.returncode == 0, again.stdout + again.stderr
    record = Record(directory / "events.jsonl")
    assert [trial.state for trial in record.trials.values()] == ["complete"] * 3
    for trial in record.trials.values():
        assert [row["epoch"] for row in trial.history] == list(range(EPOCHS + 1))
    record.close()
    _wait(lambda: cluster.get(f"/api/jobs/{beside}")["status"] not in ("PENDING", "RUNNING"))
    assert cluster.get(f"/api/jobs/{beside}")["status"] == "SUCCEEDED"
    assert _count(tmp_path / "runs" / "sweeps" / "second-001", "trial_ended") == 1


def _count(directory: Path, name: str) -> int:
    return sum(event["event"] == name for event in events(directory))


def _wait(
    reached: Callable[[], bool], process: subprocess.Popen[bytes] | None = None, log: Path = Path(os.devnull)
) -> None:
    deadline = time.monotonic() + 400
    while not reached():
        assert time.monotonic() < deadline, log.read_text()
        assert process is None or process.poll() is None, log.read_text()
        time.sleep(0.3)

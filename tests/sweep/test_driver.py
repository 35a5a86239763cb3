"""The driver of a sweep is known, and no other process is ever signalled."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from support.one_ray import one_ray
from support.sweeping import Driver, events, faulty_path, write_spec

from tokconv.cli.main import main
from tokconv.errors import SweepError
from tokconv.sweep.record.driver import FILE, driver_of, registered, stop
from tokconv.sweep.record.log import Record


def sleeper(code: str) -> subprocess.Popen[bytes]:
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def say(directory: Path, pid: int, **changes: object) -> None:
    started = psutil.Process(pid).create_time()
    said = {"pid": pid, "host": os.uname().nodename, "started": started, "signal": signal.SIGINT, **changes}
    (directory / FILE).write_text(json.dumps(said))


def reporting_sweep(spec: Path, directory: Path, **faults: str) -> subprocess.Popen[str]:
    """Start a sweep as a terminal does, in a process of its own, and return it once a trial has reported.

    Args:
        faults: environment variables that `support/faults` reads.
    """
    running = subprocess.Popen(
        [sys.executable, "-m", "tokconv.cli.main", "sweep", str(spec)],
        cwd=spec.parent,
        env={**os.environ, "PYTHONPATH": faulty_path(), **faults},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    deadline = time.monotonic() + 120
    while not any(event["event"] == "trial_reported" for event in events(directory)):
        assert time.monotonic() < deadline
        assert running.poll() is None
        time.sleep(0.2)
    return running


def test_a_driver_is_registered_as_long_as_its_block_runs(tmp_path: Path) -> None:
    assert driver_of(tmp_path) is None
    with registered(tmp_path):
        found = driver_of(tmp_path)
        assert found is not None
        assert found.pid == os.getpid()
        with pytest.raises(SweepError, match="this very process"):
            stop(tmp_path, timeout=1)
    assert driver_of(tmp_path) is None
    with pytest.raises(SweepError, match="no process runs this sweep"):
        stop(tmp_path, timeout=1)


def test_a_copy_of_a_sweep_has_no_driver(tmp_path: Path) -> None:
    original, copy, moved = tmp_path / "original", tmp_path / "copy", tmp_path / "moved"
    original.mkdir()
    with registered(original):
        shutil.copytree(original, copy)
        assert driver_of(copy) is None
        with pytest.raises(SweepError, match="no process runs this sweep"):
            stop(copy, timeout=1)
        assert driver_of(original) is not None
        # A directory that is moved under its driver keeps it: the driver's files are open.
        original.rename(moved)
        assert driver_of(moved) is not None
        moved.rename(original)


def test_only_the_driver_itself_is_signalled(tmp_path: Path) -> None:
    bystander = sleeper("print('ready', flush=True); import time; time.sleep(60)")
    try:
        # This process has the pid of a driver that is gone.
        say(tmp_path, bystander.pid, started=1.0)
        with pytest.raises(SweepError, match="no process runs this sweep"):
            stop(tmp_path, timeout=1)
        say(tmp_path, bystander.pid, host="elsewhere")
        with pytest.raises(SweepError, match=r"process \d+ on elsewhere runs this sweep; .*ray job stop"):
            stop(tmp_path, timeout=1)
        (tmp_path / FILE).write_text("{")
        assert driver_of(tmp_path) is None
        assert bystander.poll() is None
        say(tmp_path, bystander.pid)
        stop(tmp_path, timeout=10)
        assert not psutil.pid_exists(bystander.pid)
        assert driver_of(tmp_path) is None
    finally:
        bystander.kill()
        bystander.communicate()


def test_a_driver_that_does_not_end_is_reported(tmp_path: Path) -> None:
    code = "import signal, time; signal.signal(2, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    stubborn = sleeper(code)
    try:
        say(tmp_path, stubborn.pid)
        with pytest.raises(SweepError, match=r"has not ended after 0\.2 s"):
            stop(tmp_path, timeout=0.2)
    finally:
        stubborn.kill()
        stubborn.communicate()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_running_sweep_is_stopped_and_goes_on(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_spec(tmp_path, trials=2, base=["training.epochs=8"])
    directory, runs = tmp_path / "runs" / "sweeps" / "tiny-001", str(tmp_path / "runs")
    # Its first trial hangs in its third epoch, so that it is not over before it is stopped.
    running = reporting_sweep(path, directory, TOKCONV_HANG="4:6")
    capfd.readouterr()
    assert main(["status", "tiny", "--json", "--storage", runs]) == 0
    status = json.loads(capfd.readouterr().out)
    assert (status["state"], status["driver"]["pid"]) == ("running", running.pid)
    assert main(["report", "tiny", "--storage", runs, "--out", str(tmp_path / "page")]) == 0
    assert "running" in (tmp_path / "page" / "report.html").read_text()
    assert main(["stop", "tiny", "--storage", runs]) == 0
    assert "go on with: tokconv sweep SPEC --resume" in capfd.readouterr().out
    # Its exit code is unknown: `stop` waited for it, and only one process can.
    output, _ = running.communicate(timeout=10)
    assert "Stopped. Everything finished is kept in" in output
    assert "SIGTERM" not in output
    assert "interrupted" in output.splitlines()[-1]
    assert events(directory)[-1]["state"] == "interrupted"
    assert not (directory / FILE).exists()
    reported = sum(event["event"] == "trial_reported" for event in events(directory))
    assert reported <= 3
    with one_ray():
        Driver(path, tmp_path).resume()
    epochs = [event["epoch"] for event in events(directory) if event["event"] == "trial_reported"]
    assert sorted(epochs) == sorted([*range(9)] * 2)


@pytest.mark.slow
def test_ctrl_c_twice_stops_now_and_leaves_no_process(tmp_path: Path) -> None:
    path = write_spec(tmp_path, trials=2, base=["training.epochs=400"])
    directory = tmp_path / "runs" / "sweeps" / "tiny-001"
    running = reporting_sweep(path, directory)
    children = psutil.Process(running.pid).children(recursive=True)
    assert children
    running.send_signal(signal.SIGINT)
    time.sleep(0.3)
    running.send_signal(signal.SIGINT)
    started = time.monotonic()
    running.communicate(timeout=30)
    assert time.monotonic() - started < 20
    assert running.returncode != 0
    _, left = psutil.wait_procs(children, timeout=60)
    assert [process for process in left if process.status() != psutil.STATUS_ZOMBIE] == []
    # Other processes' files may contain its digits.
    named = re.compile(rf"(?<!\d){running.pid}(?!\d)")
    assert not [path for path in Path("/dev/shm").iterdir() if named.search(path.name)]
    before = sum(event["event"] == "trial_reported" for event in events(directory))
    assert before > 0
    record = Record(directory / "events.jsonl")
    assert [trial.state for trial in record.trials.values()].count("running") == len(record.trials)
    record.close()

"""`tokconv ui`: the page of a sweep on a port of this machine, MLflow's server, and nothing left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.ports import answers, free_port
from support.records import write_sweep
from support.tracked import deliver_sweep

import tokconv
from tokconv.cli.main import main
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.report.serve import ReportServer


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[SweepDirectory, ReportServer]]:
    directory = write_sweep(tmp_path, trials=4, ended=False)
    with ReportServer(directory) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield directory, server
        server.shutdown()


def test_the_served_page_follows_the_record(served: tuple[SweepDirectory, ReportServer]) -> None:
    directory, server = served
    with urllib.request.urlopen(server.url, timeout=60) as answer:
        before = answer.read().decode()
    assert "00007" not in before
    record = Record(directory.events)
    record.append("trial_started", trial="00007", values={"training.n_critic": 1}, ratio=36.0)
    record.append("trial_ended", trial="00007", state="failed", reason="out of memory")
    record.close()
    with urllib.request.urlopen(server.url, timeout=60) as answer:
        assert "00007" in answer.read().decode()


def test_a_page_of_another_host_cannot_read_it(served: tuple[SweepDirectory, ReportServer]) -> None:
    _, server = served
    for path, host, status in (("", "evil.example.org", 403), ("../spec.yaml", None, 404)):
        request = urllib.request.Request(server.url + path, headers={} if host is None else {"Host": host})
        with pytest.raises(urllib.error.HTTPError, match=str(status)):
            urllib.request.urlopen(request, timeout=60)


def test_a_taken_port_and_a_missing_sweep_are_refused(
    served: tuple[SweepDirectory, ReportServer], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory, server = served
    port = server.server_address[1]
    assert main(["ui", str(directory.path), "--report", "--no-browser", "--port", str(port)]) == 2
    assert f"port {port}: cannot be used" in capsys.readouterr().err
    for number in ("65536", "-1"):
        assert main(["ui", str(directory.path), "--report", "--no-browser", f"--port={number}"]) == 2
        assert f"--port: got {number}; must be from 1 to 65535" in capsys.readouterr().err
    assert main(["ui", "--storage", str(tmp_path / "none")]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    assert main(["ui", "tiny", "--storage", str(tmp_path / "runs")]) == 2
    assert "mlflow.db: no such database" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("report", [True, False])
def test_ctrl_c_ends_the_command_and_its_child(tmp_path: Path, *, report: bool) -> None:
    directory = write_sweep(tmp_path, trials=4)
    runs = directory.path.parents[1]
    if not report:
        deliver_sweep(directory)
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tokconv.cli",
        "ui",
        "--no-browser",
        "--port",
        str(port),
        "--storage",
        str(runs),
    ]
    process = subprocess.Popen(
        [*command, *(["--report"] if report else [])],
        env={**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    printed = next(line for line in process.stdout if "http://" in line)
    assert re.fullmatch(rf"tiny-001: .*: http://127\.0\.0\.1:{port}/.*\n", printed)
    assert answers(f"http://127.0.0.1:{port}/")
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=60)[0].endswith("ended\n")
    assert process.returncode == 0
    assert not answers(f"http://127.0.0.1:{port}/")

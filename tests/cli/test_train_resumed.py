"""`tokconv train --resume`: a run that is finished, interrupted, at work, or of another protocol."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock
from support.commands import SHORT, TINY, digits, refused
from support.photos import write_photos
from support.towers import write_tower

from tokconv.cli.main import main

ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.usefixtures("empty_directory")


def test_resume_of_a_finished_run_reports_that_it_is_finished(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-mlflow", *SHORT, *digits(store)]) == 0
    assert re.search(r"^epoch 0/1 +\d", capsys.readouterr().out, re.MULTILINE)
    assert main(["train", "--resume"]) == 0
    text = capsys.readouterr().out
    assert "runs/train/train-001: finished already" in text
    assert re.search(r"^epoch 1/1 +\d", text, re.MULTILINE)
    assert re.search(r"^best epoch: [01] of 1", text, re.MULTILINE)
    verdict = re.search(r"^fidelity: fvu [\d.]+ (beats|does not beat) the best closed form, .*$", text, re.MULTILINE)
    assert verdict is not None
    assert main(["export", "runs/train/train-001", "--out", "out"]) == 0
    assert f"of 1, {verdict[0]}\n" in capsys.readouterr().out
    assert "tokconv export runs/train/train-001" in text
    wider = ["model.compressor.hidden_dim=16"]
    refused(capsys, ["train", "--resume", *wider], "was started with model.compressor.hidden_dim=8, not 16")
    saved = Path("runs/train/train-001/config.json")
    text = saved.read_text()
    for damaged in ("[]", "{"):
        saved.write_text(damaged)
        refused(capsys, ["train", "--resume"], "config.json: missing or damaged; start a new run")
    saved.write_text(text)
    # Another copy of the same data is the same experiment.
    assert main(["train", "--resume", "data.num_workers=0", "data=digits"]) == 0
    assert "note:" not in capsys.readouterr().out
    _judge_by_protocol_1(Path("runs/train/train-001"))
    assert main(["train", "--resume"]) == 0
    assert "figures are of evaluation protocol 1" in capsys.readouterr().out


def test_a_run_goes_on_without_its_images_unless_it_is_at_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(figures: dict[str, float], _: object) -> str:
        if figures["epoch"] == 1:
            raise KeyboardInterrupt
        return ""

    photos = write_photos(tmp_path / "photos", 8)
    given = ["data=folder", "data.root=photos", f"model.clip.model_name={write_tower(tmp_path / 'tower')}"]
    grid = "model.compressor.output_grid_size=2"
    with monkeypatch.context() as patched:
        patched.setattr("tokconv.cli.train._epoch_row", stop)
        assert main(["train", "--no-mlflow", *TINY, "training.epochs=2", *given, grid, "data.num_workers=0"]) == 130
    shutil.rmtree(photos)
    with FileLock("runs/train/train-001/.lock"):
        refused(capsys, ["train", "--resume"], "train-001: another process trains this run")
    assert main(["train", "--no-mlflow", "--resume"]) == 0
    assert "\n2," in Path("runs/train/train-001/curve.csv").read_text()


@pytest.mark.slow
def test_an_interrupted_run_can_be_resumed(store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = _start("train", "--no-mlflow", *TINY, "training.epochs=15", "--name", "long", *digits(store))
    _wait_for(lambda: any(tmp_path.glob("runs/train/long-001/checkpoints/epoch-*")), run)
    run.send_signal(signal.SIGINT)
    out, err = run.communicate(timeout=30)
    assert run.returncode == 130, err
    assert out.splitlines()[-1] == "stopped; go on with: tokconv train --resume --name long"
    assert err == "tokconv: interrupted\n"
    (newest,) = tmp_path.glob("runs/train/long-001/checkpoints/epoch-*")
    done = int(newest.name.split("-")[1])
    capsys.readouterr()
    assert main(["train", "--resume", "--name", "long"]) == 0
    # The newest figures are shown once more, then the remaining epochs.
    shown = re.findall(r"^epoch +(\d+)/15 +\d", capsys.readouterr().out, re.MULTILINE)
    assert list(map(int, shown)) == list(range(done, 16))


def test_an_unfinished_run_of_another_protocol_is_not_resumed(store: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--no-mlflow", *SHORT, *digits(store)]) == 0
    run = Path("runs/train/train-001")
    config = json.loads((run / "config.json").read_text())
    config["training"]["epochs"] = 2
    (run / "config.json").write_text(json.dumps(config))
    _judge_by_protocol_1(run)
    assert main(["train", "--resume"]) == 2
    assert "evaluation protocol 1" in capsys.readouterr().err


def _judge_by_protocol_1(run: Path) -> None:
    [path] = run.glob("checkpoints/*/state.json")
    path.write_text(json.dumps({**json.loads(path.read_text()), "protocol": 1}))


def _start(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "tokconv.cli.main", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **(environment or {})},
        # A shell that runs the tests in the background makes its children ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def _wait_for(condition: Callable[[], bool], process: subprocess.Popen[str], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.05)

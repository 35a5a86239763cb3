"""`tokconv status` and `tokconv report`: what they show of a record, what they import, and the time left."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import yaml
from support.records import EPOCHS, baseline, write_sweep

import tokconv.sweep
from tokconv.cli.main import main
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.spec.outline import GRID_KEY

HEAVY = (
    *("torch", "transformers", "ray", "mlflow", "optuna", "pandas", "matplotlib", "scipy", "plotly", "numpy"),
    *("hydra", "omegaconf", "pydantic", "moocore", "psutil", "filelock", "fsspec"),
)


def test_status_and_report_from_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = str(tmp_path / "runs")
    assert main(["status", "--storage", runs]) == 2
    assert "holds no sweep" in capsys.readouterr().err
    finished, cut = write_sweep(tmp_path), write_sweep(tmp_path, name="other", ended=False)
    assert main(["status", "--storage", runs]) == 0
    printed = capsys.readouterr().out
    assert re.search(r"tiny-001 +finished +24/24", printed)
    assert re.search(r"other-001 +cut off +23/24", printed)
    assert main(["status", "other", "--storage", runs]) == 0
    assert "--resume" in capsys.readouterr().out
    assert main(["status", "tiny", "--storage", runs]) == 0
    printed = capsys.readouterr().out
    assert "report: none yet; tokconv report tiny-001 writes it" in printed
    proven = [award for verdict in read_sweep(finished).verdicts for award in verdict.awards if award.evidence]
    count = sum(award.evidence.status == "proven" for award in proven if award.evidence)
    assert f"verdict: {count}/{len(proven)} champions are proven" in printed
    assert main(["status", "tiny", "--json", "--storage", runs]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["state"], facts["states"]["complete"], facts["driver"]) == ("finished", 19, None)
    # The means over the confirmations, not the figures of the trial that was confirmed.
    assert "means over their confirmations" in printed
    for award in proven:
        assert award.evidence is not None
        shown = facts["best"][str(award.evidence.champion.grid)][award.purpose.name]
        assert shown["figures"] == award.evidence.figures != shown["trial_figures"]
        assert FIGURES[award.criterion.figure].text(award.evidence.figures[award.criterion.figure]) in printed
    before = (finished.path / "events.jsonl").read_bytes()
    assert main(["report", "tiny", "--storage", runs]) == 0
    assert sorted(path.name for path in finished.report.iterdir()) == [
        *("learning_curves.png", "pareto.png", "report.html", "results.csv")
    ]
    assert main(["status", "tiny", "--storage", runs]) == 0
    assert f"report: {finished.page}" in capsys.readouterr().out
    assert main(["report", "other", "--storage", runs, "--out", str(tmp_path / "elsewhere")]) == 0
    assert (tmp_path / "elsewhere" / "report.html").exists()
    assert not cut.report.exists()
    assert (finished.path / "events.jsonl").read_bytes() == before
    (cut.path / "spec.yaml").write_text("name: [")
    assert main(["status", "--storage", runs]) == 0
    assert "other-001: cannot be read" in capsys.readouterr().err


@pytest.mark.parametrize(("recorded", "protocol"), [(1, 1), (None, 1), (PROTOCOL, PROTOCOL)])
def test_a_sweep_is_labelled_with_the_protocol_that_judged_it(
    tmp_path: Path, recorded: int | None, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_sweep(tmp_path, trials=6, protocol=recorded)
    assert set(tokconv.sweep.load(directory.path).protocol) == {protocol}
    assert main(["report", str(directory.path)]) == 0
    assert set(pandas.read_csv(directory.report / "results.csv").protocol) == {protocol}
    assert f"evaluation protocol {protocol}" in (directory.report / "report.html").read_text()


@pytest.mark.parametrize(
    ("commands", "absent"),
    [
        ([["status"], ["status", "tiny"]], HEAVY),
        ([["report", "tiny"]], ("torch", "transformers", "ray", "mlflow", "sklearn", "scipy.stats")),
    ],
)
def test_a_command_imports_only_what_it_needs(tmp_path: Path, commands: list[list[str]], absent: tuple[str]) -> None:
    """In a process of its own: it is asked while training fills the cores, where imports take seconds."""
    write_sweep(tmp_path)
    code = (
        "import sys; from tokconv.cli.main import main; "
        f"code = sum(main(command) for command in {commands}); "
        f"print(code, [name for name in {absent} if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path(tokconv.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "0 []"


def test_the_time_left_counts_starts_epochs_and_ends_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Trials of 30 s of start, EPOCHS of 1 s and 20 s of end, one after another; a pause before this run."""
    directory = write_sweep(tmp_path, trials=1, ended=False)
    trials, whole = 8, 30.0 + EPOCHS + 20.0
    tree = yaml.safe_load(directory.spec.read_text()) | {"trials": trials, "confirm": "none"}
    directory.spec.write_text(yaml.safe_dump(tree))
    started, *_ = (json.loads(line) for line in directory.events.read_text().splitlines())
    events, done = [], 3
    start = time.time() - done * whole - 30.0 - 1.5
    for number in range(done + 1):
        uid, at = f"{number:05d}", start + number * whole
        seen = [{"event": "trial_started", "values": {GRID_KEY: 4}, "ratio": 36.0, "time": at}]
        epochs = EPOCHS + 1 if number < done else 2
        for epoch in range(epochs):
            late = 20.0 if epoch == EPOCHS else 0.0
            figures = {**baseline(0.1, 0.05), "epochs": EPOCHS, "compression_ratio": 36.0}
            reported = {"event": "trial_reported", "epoch": epoch, "figures": figures, "checkpoint": None}
            seen.append({**reported, "time": at + 30.0 + epoch + late})
        if number < done:
            seen.append({"event": "trial_ended", "state": "complete", "reason": "", "time": at + whole})
        events += [{**event, "trial": uid, "time": int(1000 * event["time"])} for event in seen]
    lines = [{**started, "time": int(1000 * start)}, *events]
    directory.events.write_text("".join(f"{json.dumps(line)}\n" for line in lines))
    left = (trials - done) * whole - 31.5
    with directory.lock():
        assert main(["status", "tiny", "--json", "--storage", str(tmp_path / "runs")]) == 0
    assert json.loads(capsys.readouterr().out)["seconds_left"] == pytest.approx(left, rel=0.15)

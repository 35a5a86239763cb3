"""A sweep is found, read from its directory, judged, and shown as a page and as a table."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas
import pytest
import yaml
from support.records import EPOCHS, GRIDS, baseline, write_sweep
from support.sweeping import spec

import tokconv.sweep
from tokconv.cli.main import main
from tokconv.errors import SpecError, SweepError
from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.protocol import PROTOCOL
from tokconv.sweep.judge.snapshot import all_sweeps, find_sweep, read_sweep
from tokconv.sweep.report.importance import MIN_TRIALS, importance
from tokconv.sweep.report.page import page
from tokconv.sweep.report.results import write_results
from tokconv.sweep.spec.file import load_spec, parse_spec, to_yaml
from tokconv.sweep.spec.outline import GRID_KEY, Outline, read_outline

CHANGES = [{}, {"confirm": "none"}, {"champions": {"fidelity": {}}}, {"constraints": ["val/fvu <= 0.1"]}]


def figures_of(html: str) -> dict[str, Any]:
    """Return the figures that the page's script draws."""
    found = re.search(r'<script type="application/json" id="figures">(.*?)</script>', html, re.DOTALL)
    assert found is not None
    figures: dict[str, Any] = json.loads(found[1])
    return figures


def test_a_sweep_is_found_by_its_names_and_by_its_path(tmp_path: Path) -> None:
    first, second = write_sweep(tmp_path), write_sweep(tmp_path)
    runs = str(tmp_path / "runs")
    assert find_sweep("tiny", runs) == find_sweep("tiny-002", runs) == find_sweep(second.path) == second
    assert find_sweep("tiny-001", runs) == first
    with pytest.raises(SweepError, match=r"tiny-3: no such sweep in .*there are: tiny-001, tiny-002"):
        find_sweep("tiny-3", runs)
    with pytest.raises(SweepError, match="there are: none"):
        find_sweep("tiny", str(tmp_path / "nowhere"))


def test_a_sweep_at_a_file_url_is_named_by_its_url_and_hides_no_other_one(tmp_path: Path) -> None:
    """There, its record is a folder of pieces."""
    own, other = write_sweep(tmp_path, name="own"), write_sweep(tmp_path, name="other")
    other.events.unlink()
    other.events.mkdir()
    runs = str(tmp_path / "runs")
    assert all_sweeps(runs) == [own]
    with pytest.raises(SweepError, match=f"other: .* --storage file://{re.escape(runs)}$"):
        find_sweep("other", runs)


def test_a_sweep_that_was_cut_off_differs_from_one_that_ended(tmp_path: Path) -> None:
    assert read_sweep(write_sweep(tmp_path)).state == "finished"
    open_end = write_sweep(tmp_path, ended=False)
    sweep = read_sweep(open_end)
    assert sweep.state == "cut off"
    assert [trial.uid for trial in sweep.trials.values() if trial.state == "running"] == ["00023"]
    with open_end.lock():
        assert read_sweep(open_end).state == "running"
    assert read_sweep(open_end).state == "cut off"


def test_a_frame_has_every_trial_and_the_evidence_for_the_winners(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path)
    sweep = read_sweep(directory)
    frame = tokconv.sweep.load(directory.path)
    assert len(frame) == 24 + 6
    assert frame[frame.kind == "search"].state.value_counts().to_dict() == {"complete": 19, "pruned": 4, "failed": 1}
    won = frame[frame.champion]
    assert sorted(won.grid) == list(GRIDS)
    for verdict in sweep.verdicts:
        assert verdict.evidence is not None
        (row,) = won[won.grid == verdict.grid].to_dict("records")
        seeds = frame[frame.confirms == row["uid"]]
        assert row["val/fvu_mean"] == pytest.approx(seeds["val/fvu"].mean())
        assert row["val/fvu_half_width"] == pytest.approx(verdict.evidence.half_widths["val/fvu"])
    write_results(tmp_path / "report", sweep)
    assert (tmp_path / "report" / "results.csv").read_text() == frame.to_csv(index=False)


def test_a_spec_without_objectives_had_the_default_of_its_version(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path)
    written = yaml.safe_load(directory.spec.read_text())
    del written["objectives"]
    directory.spec.write_text(yaml.safe_dump(written))
    assert read_sweep(directory).spec.judged_by == ("compression_ratio", "val/fvu", "val/swd")
    assert tokconv.sweep.load(directory.path).on_front.any()


def test_a_page_holds_the_figures_of_the_record_and_needs_no_network(tmp_path: Path) -> None:
    sweep = read_sweep(write_sweep(tmp_path))
    html = page(sweep)
    outside = html.split("<script>", 1)[0] + html.rsplit("</script>", 1)[1]
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", outside)
    assert "<script src" not in html
    assert "<link" not in html
    figures = figures_of(html)
    assert {"front", "likeness-4", "likeness-8", "curves-fvu-4", "curves-swd-8", "savings"} <= figures.keys()
    assert {"parallel-4", "parallel-8"} <= figures.keys()
    front = {trace["name"]: trace for trace in figures["front"]["data"]}
    complete = sorted(t.figures["val/fvu"] for t in sweep.trials.values() if t.state == "complete")
    assert sorted(front["complete"]["y"]) == pytest.approx(complete)
    stars = front["champion"]
    for index, verdict in enumerate(sweep.verdicts):
        assert verdict.evidence is not None
        assert stars["y"][index] == pytest.approx(verdict.evidence.figures["val/fvu"])
        assert stars["error_y"]["array"][index] == pytest.approx(verdict.evidence.half_widths["val/fvu"])
    run, saved = figures["savings"]["data"]
    assert sum(run["y"]) == sum(len(trial.history) for trial in sweep.trials.values())
    assert sum(saved["y"]) == 2 * 4
    assert all(trial.uid in html for trial in sweep.confirmations.values())


def test_text_from_a_sweep_never_becomes_html(tmp_path: Path) -> None:
    bad = "</script><img src=x onerror=alert(1)>"
    directory = write_sweep(tmp_path, reason=bad)
    card = directory.champion(4, "fidelity")
    card.mkdir(parents=True)
    (card / "README.md").write_text(f"---\nlicense: other\n---\n\n# {bad}\n\n[a](javascript:alert(1))\n")
    html = page(read_sweep(directory))
    assert "license: other" not in html
    assert "<h4>" in html
    assert bad not in html
    assert "<img src=x" not in html
    assert 'href="javascript' not in html
    assert "&lt;img src=x" in html


def test_a_page_of_a_thousand_trials_stays_small(tmp_path: Path) -> None:
    small, large = (len(page(read_sweep(write_sweep(tmp_path, trials=count)))) for count in (24, 1000))
    assert large - small < 1_000_000


@pytest.mark.parametrize(("recorded", "protocol"), [(1, 1), (None, 1), (PROTOCOL, PROTOCOL)])
def test_a_sweep_is_labelled_with_the_protocol_that_judged_it(
    tmp_path: Path, recorded: int | None, protocol: int, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_sweep(tmp_path, trials=6, protocol=recorded)
    assert set(tokconv.sweep.load(directory.path).protocol) == {protocol}
    assert main(["report", str(directory.path)]) == 0
    assert set(pandas.read_csv(directory.report / "results.csv").protocol) == {protocol}
    assert f"evaluation protocol {protocol}" in (directory.report / "report.html").read_text()


@pytest.mark.parametrize("trials", [1, 2])
def test_an_unfinished_sweep_has_a_page(tmp_path: Path, trials: int) -> None:
    sweep = read_sweep(write_sweep(tmp_path, trials=trials, ended=False))
    html = page(sweep)
    figures_of(html)
    assert ("No trial is complete yet" in html) == (trials == 1)


@pytest.mark.parametrize("per_grid", [0.0, 10.0])
def test_importance_finds_the_key_that_matters_whatever_the_grid_does(tmp_path: Path, per_grid: float) -> None:
    sweep = read_sweep(write_sweep(tmp_path, trials=60))
    trials = [trial for trial in sweep.trials.values() if trial.state == "complete"]
    for trial in trials:
        weight = trial.values["loss.weights.wgan"]
        trial.history[-1]["val/fvu"] = 0.01 + weight + 1e-4 * len(trial.uid) + per_grid * trial.grid
        trial.history[-1]["val/swd"] = math.sin(int(trial.uid))
    assert len({trial.grid for trial in trials}) > 1
    found = importance(trials, sweep.spec.search, "val/fvu")
    assert next(iter(found)) == "loss.weights.wgan"
    assert sum(found.values()) == pytest.approx(1)
    assert importance(trials[: MIN_TRIALS - 1], sweep.spec.search, "val/swd") == {}


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


@pytest.mark.parametrize("changes", CHANGES)
def test_an_outline_says_what_the_whole_spec_says(tmp_path: Path, changes: dict[str, Any]) -> None:
    path = tmp_path / "spec.yaml"
    written = parse_spec(spec(tmp_path, **changes))
    path.write_text(to_yaml(written))
    assert read_outline(path) == Outline(written.trials, written.confirm_seeds, written.rules)


def test_an_outline_of_an_older_spec_has_the_defaults_of_a_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("name: old\ntrials: 3\nchampion: {minimise: val/swd, subject_to: ['val/fvu <= 0.1']}\n")
    written = load_spec(path)
    assert read_outline(path) == Outline(3, written.confirm_seeds, written.rules)
    path.write_text("- no spec\n")
    with pytest.raises(SpecError, match="not a spec that a sweep wrote"):
        read_outline(path)


def test_epochs_are_found_in_records_that_do_not_name_them(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path, trials=4)
    assert read_sweep(directory).epochs == EPOCHS
    lines = directory.events.read_text().splitlines(keepends=True)
    directory.events.write_text("".join(line for line in lines if '"event":"trial_' not in line))
    assert read_sweep(directory).epochs == read_sweep(directory).spec.base_config().training.epochs


HEAVY = (
    *("torch", "transformers", "ray", "mlflow", "optuna", "pandas", "matplotlib", "scipy", "plotly", "numpy"),
    *("hydra", "omegaconf", "pydantic", "moocore", "psutil", "filelock", "fsspec"),
)


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

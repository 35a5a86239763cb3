"""A sweep is found, read from its directory and judged."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.records import EPOCHS, GRIDS, write_sweep
from support.sweeping import spec

import tokconv.sweep
from tokconv.errors import SpecError, SweepError
from tokconv.sweep.judge.snapshot import all_sweeps, find_sweep, read_sweep
from tokconv.sweep.report.importance import MIN_TRIALS, importance
from tokconv.sweep.report.results import write_results
from tokconv.sweep.spec.file import load_spec, parse_spec, to_yaml
from tokconv.sweep.spec.outline import Outline, read_outline

CHANGES = [{}, {"confirm": "none"}, {"champions": {"fidelity": {}}}, {"constraints": ["val/fvu <= 0.1"]}]


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

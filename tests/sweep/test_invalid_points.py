"""Combinations of searched values that no config can have: left out before they start, and counted apart."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from optuna.trial import TrialState
from support.networks import PUBLISHED
from support.one_ray import one_ray
from support.records import write_sweep
from support.sweeping import events, spec, write_spec

from tokconv.cli.main import main
from tokconv.config.keys import get
from tokconv.config.overrides import with_values
from tokconv.errors import ConfigError, MissingExtraError, SpecError
from tokconv.store.remote import StorePlace
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.plan.space import draw_points, space_cost
from tokconv.sweep.record.final_state import FAILURE
from tokconv.sweep.record.log import Record
from tokconv.sweep.report.page import page
from tokconv.sweep.search.space import Validity, check_space, first_points, grid_points, random_points
from tokconv.sweep.search.study import STARTUP_TRIALS, StudySearcher, open_study
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.trials.trial import TrialJob, _run
from tokconv.training.runtime import LocalRuntime
from tokconv.training.step_cost import StepCost

pytestmark = pytest.mark.filterwarnings("ignore::optuna.exceptions.ExperimentalWarning")

WGAN, AE = "loss.weights.wgan", "loss.weights.ae"
WEIGHTS = {WGAN: {"choice": [0, 0.5]}, AE: {"choice": [0, 1]}}
ALL_ZERO = "loss.weights: all are 0"
COUNT = STARTUP_TRIALS + 2
"""Of points; the last two are suggested by the model of a sampler that has one."""
HEADS = {
    "model.autoencoder.hidden_dim": {"int": [1, 64]},
    "model.autoencoder.num_heads": {"choice": [16, 24]},
}


def make(search: dict[str, Any], kind: str = "grid", **changes: Any) -> Spec:
    base = [*PUBLISHED, *changes.pop("base", [])]
    plain = {"name": "tiny", "trials": 8, "base": base, "search": search, "sampler": {"kind": kind}, **changes}
    spec = parse_spec(plain)
    # Those of a store without two-sample tests.
    return spec.with_objectives(())


class Driver:
    """A searcher on a study in a folder, and the invalid points that it names."""

    def __init__(self, spec: Spec, folder: Path) -> None:
        self.study, self.refused = open_study(spec, folder / "study.journal"), list[tuple[str, dict[str, Any], str]]()
        self.searcher = StudySearcher(spec, self.study, (), on_refused=lambda *point: self.refused.append(point))

    def run(self, count: int) -> list[dict[str, Any]]:
        found = []
        for number in range(count):
            config = self.searcher.suggest(str(number))
            if not isinstance(config, dict):
                return found
            found.append(config["values"])
            figures = {"compression_ratio": 36.0, "val/fvu": 0.5 / (1 + number), "val/swd": 0.1}
            self.searcher.on_trial_complete(str(number), {"epoch": 1, "epochs": 1, **figures})
        return found


def test_a_grid_says_what_it_leaves_out_and_runs_the_rest(tmp_path: Path) -> None:
    spec = make(WEIGHTS)
    said = check_space(spec)
    assert said.startswith("search: 1 of the grid's 4 points are invalid and left out; the first: loss.weights.wgan=0")
    assert ALL_ZERO in said
    driver = Driver(spec, tmp_path)
    assert sorted((v[WGAN], v[AE]) for v in driver.run(8)) == [(0, 1), (0.5, 0), (0.5, 1)]
    ((uid, values, reason),) = driver.refused
    assert (values, reason.startswith(ALL_ZERO)) == ({WGAN: 0, AE: 0}, True)
    # A suggestion is learned from only if it is complete or pruned.
    assert driver.study.get_trials()[int(uid)].state is TrialState.FAIL


@pytest.mark.parametrize("kind", ["tpe", "gp", "nsga2", "random"])
def test_no_sampler_spends_its_budget_on_invalid_points(tmp_path: Path, kind: str) -> None:
    """Of 128 points, 6 are valid: a sampler alone would suggest invalid ones for a long time, GP the same for ever."""
    spec = make(HEADS, kind, base=["model.autoencoder.kind=attention"], trials=COUNT)
    driver = Driver(spec, tmp_path)
    found = driver.run(COUNT)
    assert len(found) == COUNT
    assert all(with_values(spec.base_config(), values) for values in found)
    assert driver.refused


def test_a_resumed_search_leaves_the_same_points_out(tmp_path: Path) -> None:
    spec = make(WEIGHTS)
    first = Driver(spec, tmp_path)
    before = first.run(2)
    # A driver that died between asking and judging leaves a running trial, which must not start either.
    first.study.enqueue_trial({WGAN: 0, AE: 0})
    asked = first.study.ask(first.searcher._distributions)
    after = Driver(spec, tmp_path)
    assert asked.params == {WGAN: 0, AE: 0}
    assert [uid for uid, *_ in after.refused][:1] == [f"{asked.number:05d}"]
    assert len([*before, *after.run(8)]) == 3


def test_the_check_agrees_with_the_config(tmp_path: Path) -> None:
    """`Validity` skips the bounds of single values, which ranges have already met."""
    spec = make({**WEIGHTS, **HEADS, GRID_KEY: {"int": [4, 9]}}, "random", base=["model.autoencoder.kind=attention"])
    validity, base = Validity(spec), spec.base_config()
    refused = 0
    for point in list(random_points(spec))[:60]:
        try:
            with_values(base, point)
            reason = ""
        except ConfigError as error:
            reason = str(error)
        assert validity.refusal(point) == reason
        refused += bool(reason)
    assert 0 < refused < 60
    assert get(base, AE) == 1


def test_a_space_without_a_valid_point_is_refused_before_anything_runs() -> None:
    for kind in ("grid", "tpe"):
        with pytest.raises(SpecError, match=r"search: (no combination|none of 257 combinations) .* all are 0"):
            check_space(make({WGAN: {"choice": [0]}, AE: {"choice": [0]}}, kind))


def test_a_loss_that_is_not_installed_is_named_before_anything_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    search = {"loss.distribution": {"choice": ["swd", "sinkhorn"]}, "loss.weights.distribution": {"float": [0, 1]}}
    with pytest.raises(MissingExtraError, match=r"tokconv\[sinkhorn\]"):
        check_space(make(search, "random"))
    assert check_space(make({"loss.distribution": search["loss.distribution"]}, "random")) == ""


def test_a_plan_counts_valid_points_only() -> None:
    spec = make({**WEIGHTS, GRID_KEY: {"choice": [4, 5]}}, base=["model.compressor.kind=matryoshka"])
    assert len(draw_points(spec)) == 3
    cost = StepCost(parameters=1, flops=1.0, checkpoint_bytes=1, export_bytes=1, seconds=None)
    # No compressor serves the grid 5, so that no trial will have it.
    assert list(space_cost(spec, lambda config: cost)) == [4]
    assert len(grid_points(spec)) == 8
    assert len(first_points(spec)) == 2


def test_a_trial_whose_config_is_wrong_reports_that_instead_of_raising_it(tmp_path: Path) -> None:
    """Ray would print the traceback and run the trial again."""
    spec, reports = make(WEIGHTS), list[dict[str, str]]()
    job = TrialJob(spec.base_config(), StorePlace(str(tmp_path), ""), str(tmp_path), spec.resources)
    _run({"values": {WGAN: 0, AE: 0}}, job, LocalRuntime(tmp_path), reports.append)
    assert [list(report) for report in reports] == [[FAILURE]]
    assert reports[0][FAILURE].startswith(ALL_ZERO)


def test_status_and_page_count_invalid_points_apart_from_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = write_sweep(tmp_path)
    record = Record(directory.events)
    record.append("point_refused", point="00024", values={WGAN: 0, AE: 0}, reason="loss.weights: all are 0")
    record.close()
    assert main(["status", "tiny", "--storage", str(tmp_path / "runs")]) == 0
    assert "24/24 trials finished (19 complete, 4 stopped early, 1 failed, 1 invalid and left out)" in (
        capsys.readouterr().out
    )
    snapshot = read_sweep(directory)
    assert snapshot.states == {"complete": 19, "pruned": 4, "failed": 1, "invalid": 1}
    assert "1 failed, 1 invalid and left out" in page(snapshot)


@pytest.mark.slow
def test_a_grid_with_an_invalid_point_runs_without_a_failure(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = write_spec(tmp_path, search=WEIGHTS, sampler={"kind": "grid"}, base=["training.epochs=1"])
    with one_ray():
        assert main(["sweep", str(path)]) == 0
    found = capfd.readouterr()
    lines = (found.out + found.err).splitlines()
    assert [line for line in lines if "1 of the grid's 4 points" in line] == lines[:1]
    assert sum(line.startswith("point ") and ALL_ZERO in line for line in lines) == 1
    assert "3/4 trials finished: 3 complete, 1 invalid and left out" in "\n".join(lines)
    assert not [line for line in lines if "Traceback" in line or "ConfigError" in line]
    directory = Path(spec(tmp_path)["storage"]) / "sweeps" / "tiny-001"
    before = events(directory)
    with one_ray():
        assert main(["sweep", str(path), "--resume"]) == 0
    kinds = [event["event"] for event in events(directory)]
    assert kinds.count("point_refused") == 1
    assert kinds.count("trial_started") == [e["event"] for e in before].count("trial_started") == 3

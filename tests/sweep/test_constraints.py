"""Constraints reach the study: a sampler that reads them avoids the half that breaks them."""

from __future__ import annotations

from pathlib import Path

import pytest
from optuna.trial import TrialState
from support.sweeping import spec

from tokconv.errors import SweepError
from tokconv.sweep.record.checks import check_same_experiment
from tokconv.sweep.search.constraints import is_feasible
from tokconv.sweep.search.study import StudySearcher, open_study
from tokconv.sweep.spec.file import parse_spec

TRIALS = 48


def searched(root: Path, constraints: list[str], kind: str = "tpe") -> tuple[StudySearcher, list[float]]:
    """Search for a high gain and a low swd; the fvu is the gain. Return the searcher and the fvu of every trial."""
    root.mkdir()
    weights = ("loss.weights.ae", "loss.weights.distribution")
    checked = parse_spec(
        spec(
            root,
            trials=TRIALS,
            search={key: {"float": [0.0, 1.0]} for key in weights},
            sampler={"kind": kind},
            objectives=[{"metric": "val/gain", "mode": "max"}, {"metric": "val/swd", "mode": "min"}],
            constraints=constraints,
        )
    )
    searcher = StudySearcher(checked, open_study(checked, root / "journal"), [])
    found = []
    for number in range(TRIALS):
        values = searcher.suggest(str(number))["values"]
        x, y = (values[key] for key in weights)
        ended = {"epoch": 1, "epochs": 1, "val/gain": x, "val/swd": y, "val/fvu": x}
        searcher.on_trial_complete(str(number), ended)
        found.append(x)
    return searcher, found


def test_a_study_with_a_constraint_avoids_the_infeasible_half(tmp_path: Path) -> None:
    (_, free), (searcher, bound) = searched(tmp_path / "free", []), searched(tmp_path / "bound", ["val/fvu <= 0.5"])
    assert sum(x > 0.5 for x in free) > 0.7 * TRIALS
    assert sum(x > 0.5 for x in bound) < 0.6 * TRIALS
    trials = searcher._study.get_trials()
    assert all(trial.state is TrialState.COMPLETE for trial in trials)
    assert [is_feasible(trial) for trial in trials] == [x <= 0.5 for x in bound]
    assert trials[0].constraints == {"val/fvu <= 0.5": pytest.approx((bound[0] - 0.5) / 0.5)}
    assert {trial.number for trial in searcher._study.best_trials} <= {t.number for t in trials if is_feasible(t)}


def test_a_missing_figure_breaks_a_constraint_and_a_stopped_trial_has_none(tmp_path: Path) -> None:
    searcher, _ = searched(tmp_path / "missing", ["val/probe_kept >= 0.9"], kind="random")
    assert not any(map(is_feasible, searcher._study.get_trials()))
    searcher.suggest("stopped")
    searcher.on_trial_complete("stopped", {"epoch": 1, "epochs": 4, "val/gain": 0.1, "val/swd": 0.1})
    assert searcher._study.get_trials()[-1].state is TrialState.PRUNED
    assert searcher._study.get_trials()[-1].constraints == {}


def test_a_resumed_study_may_not_change_its_constraints(tmp_path: Path) -> None:

    before = parse_spec(spec(tmp_path, constraints=["val/fvu <= 0.5"]))
    check_same_experiment(before, before)
    with pytest.raises(SweepError, match=r"constraints: differs from the sweep to resume.*val/fvu <= 0.5"):
        check_same_experiment(parse_spec(spec(tmp_path)), before)

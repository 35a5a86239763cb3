"""Early stopping by dominance, without Ray, and the rule for the state in which a trial ended."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.tune.schedulers import TrialScheduler
from support.trials import trial

from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.final_state import FAILURE, FinalState, final_state
from tokconv.sweep.search.early_stopping import ParetoHalving, Rungs
from tokconv.sweep.spec.rules import compared
from tokconv.sweep.spec.sections import EarlyStopping

RULE = EarlyStopping(min_epochs=2, reduction=3)
EPOCHS = 20
RATIOS = (9.0, 36.0)

Report = tuple[str, dict[str, float]]
COORDINATE = st.integers(0, 9).map(lambda n: n / 10)


def report(fvu: float, swd: float, epoch: int = 2, ratio: float = 36.0) -> dict[str, float]:
    return {"val/fvu": fvu, "val/swd": swd, "epoch": epoch, "compression_ratio": ratio}


@st.composite
def sweeps(draw: st.DrawFn) -> list[Report]:
    """Draw reports of several trials: each in the order of its epochs, the trials interleaved."""
    ratios = draw(st.lists(st.sampled_from(RATIOS), min_size=1, max_size=8))
    epochs = dict.fromkeys(range(len(ratios)), 0)
    found = []
    for number in draw(st.lists(st.sampled_from(sorted(epochs)), max_size=60)):
        epochs[number] += 1
        figures = report(draw(COORDINATE), draw(COORDINATE), epochs[number], ratios[number])
        found.append((f"{number:05d}", figures))
    return found


def points_at(reports: list[Report], epoch: float, ratio: float) -> list[tuple[float, float]]:
    return [(f["val/fvu"], f["val/swd"]) for _, f in reports if f["epoch"] == epoch and f["compression_ratio"] == ratio]


@given(st.integers(1, 30), st.integers(2, 5), st.integers(1, 100))
def test_rungs_lie_at_powers_of_the_reduction_before_the_end(first: int, reduction: int, epochs: int) -> None:
    levels = Rungs(EarlyStopping(min_epochs=first, reduction=reduction), epochs).levels
    assert levels == [first * reduction**i for i in range(len(levels))]
    assert all(level < epochs for level in levels)
    assert first * reduction ** len(levels) >= epochs


@given(sweeps())
def test_only_dominated_trials_at_a_rung_are_stopped(reports: list[Report]) -> None:
    rungs = Rungs(RULE, EPOCHS)
    for number, (uid, figures) in enumerate(reports):
        if not rungs.goes_on(uid, figures):
            assert figures["epoch"] in rungs.levels
            rivals = points_at(reports[:number], figures["epoch"], figures["compression_ratio"])
            assert any(dominates(rival, (figures["val/fvu"], figures["val/swd"])) for rival in rivals)


def test_trials_without_a_figure_that_is_compared_go_on() -> None:
    rungs = Rungs(RULE, EPOCHS, ("val/fvu", "val/reader_kept"))
    assert all(rungs.goes_on(f"{n:05d}", report(n / 12, n / 12)) for n in range(12))


@given(st.permutations(range(12)))
def test_a_front_larger_than_the_quota_goes_on_whole(order: list[int]) -> None:
    rungs = Rungs(RULE, EPOCHS)
    for _ in range(2):
        assert all(rungs.goes_on(f"{n:05d}", report(n / 12, 1 - n / 12)) for n in order)


@given(sweeps())
def test_grids_do_not_know_of_each_other(reports: list[Report]) -> None:
    together = Rungs(RULE, EPOCHS)
    decisions = [together.goes_on(*each) for each in reports]
    for ratio in RATIOS:
        single = Rungs(RULE, EPOCHS)
        expected = [single.goes_on(*each) for each in reports if each[1]["compression_ratio"] == ratio]
        own = [d for d, each in zip(decisions, reports, strict=True) if each[1]["compression_ratio"] == ratio]
        assert own == expected


@given(st.permutations(range(30)), st.integers(2, 5))
def test_about_one_in_reduction_of_a_chain_survives_a_full_rung(order: list[int], reduction: int) -> None:
    """Of thirty trials that each dominate the next, the best 1 / reduction go on once all have reached the rung."""
    rungs = Rungs(EarlyStopping(min_epochs=2, reduction=reduction), EPOCHS)
    for number in order:
        rungs.goes_on(f"{number:05d}", report(number / 30, number / 30))
    survivors = [number for number in range(30) if rungs.goes_on(f"{number:05d}", report(number / 30, number / 30))]
    assert survivors == list(range(len(survivors)))
    assert len(survivors) == -(-30 // reduction)


@given(st.permutations(range(12)))
def test_of_equal_rank_the_least_crowded_go_on_first(order: list[int]) -> None:
    """Of a front of twelve behind one better trial, a third of the thirteen goes on, the ends of the front included."""
    rungs = Rungs(RULE, EPOCHS)
    rungs.goes_on("best", report(0.0, 0.0))
    places = {f"{number:05d}": report(0.1 + number**2 / 1000, 0.5 - number / 100) for number in order}
    for uid, figures in places.items():
        rungs.goes_on(uid, figures)
    survivors = {uid for uid, figures in places.items() if rungs.goes_on(uid, figures)}
    assert {"00000", "00011"} <= survivors
    assert len(survivors) == 4
    assert rungs.goes_on("best", report(0.0, 0.0))


@given(sweeps())
def test_reporting_an_epoch_again_changes_nothing(reports: list[Report]) -> None:
    once, twice = Rungs(RULE, EPOCHS), Rungs(RULE, EPOCHS)
    for uid, figures in reports:
        decision = once.goes_on(uid, figures)
        assert twice.goes_on(uid, figures) == decision
        assert twice.goes_on(uid, dict(figures)) == decision


@given(sweeps())
def test_a_replayed_record_judges_like_the_driver_that_died(reports: list[Report]) -> None:
    rule = EarlyStopping(min_epochs=1, reduction=2)
    live, resumed = Rungs(rule, EPOCHS), Rungs(rule, EPOCHS)
    records: dict[str, TrialRecord] = {}
    for uid, figures in reports:
        live.goes_on(uid, figures)
        found = records.setdefault(uid, TrialRecord(uid, {}, 4, figures["compression_ratio"], 0))
        found.apply({"event": "trial_reported", "epoch": figures["epoch"], "figures": figures, "time": 0})
    resumed.replay(records.values())
    for ratio in RATIOS:
        for epoch in live.levels:
            for number, fvu in enumerate((0.05, 0.35, 0.65, 0.95)):
                question = report(fvu, 0.5, epoch, ratio)
                assert resumed.goes_on(f"new-{number}", question) == live.goes_on(f"new-{number}", question)


def test_a_clearly_bad_trial_is_stopped_by_tunes_view_and_a_failure_is_left_to_end_itself() -> None:
    class Trial:
        def __init__(self, uid: str) -> None:
            self.config = {"uid": uid}

    halving = ParetoHalving(Rungs(RULE, EPOCHS))
    assert halving.on_trial_result(None, Trial("0"), report(0.1, 0.1)) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, Trial("1"), report(0.05, 0.2)) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, Trial("2"), report(0.9, 0.9)) == TrialScheduler.STOP
    assert halving.on_trial_result(None, Trial("3"), report(0.9, 0.9, epoch=1)) == TrialScheduler.CONTINUE
    assert halving.on_trial_result(None, Trial("4"), {FAILURE: "diverged"}) == TrialScheduler.CONTINUE


@pytest.mark.parametrize(
    ("objectives", "axes"),
    [
        (("compression_ratio", "val/fvu", "val/swd"), ("val/fvu", "val/swd")),
        (("compression_ratio", "val/fvu", "val/auc_token", "val/auc_grid"), ("val/fvu", "val/auc_token_quick")),
        (("val/reader_kept",), ("val/fvu", "val/reader_kept")),
        (("val/adapted_kept", "val/fvu"), ("val/fvu", "val/swd")),
    ],
)
def test_trials_are_compared_on_what_stands_for_the_objectives_after_every_epoch(
    objectives: tuple[str, ...], axes: tuple[str, ...]
) -> None:
    assert compared(objectives) == axes


def test_a_reader_that_keeps_more_is_better() -> None:
    rungs = Rungs(RULE, EPOCHS, ("val/reader_kept",))
    kept = iter((0.5, 0.9, 0.2))
    assert [rungs.goes_on(str(uid), report(0.1, 0.1) | {"val/reader_kept": next(kept)}) for uid in range(3)] == [
        True,
        True,
        False,
    ]


def test_replay_of_the_records_own_history_fills_the_rungs() -> None:
    rungs = Rungs(RULE, 9)
    rungs.replay([trial("0", fvu=0.01, swd=0.01), trial("1", fvu=0.02, swd=0.02)])
    ratio = trial("0").ratio
    assert not rungs.goes_on("2", report(0.9, 0.9, 2, ratio))
    assert rungs.goes_on("3", report(0.001, 0.9, 2, ratio))
    assert rungs.goes_on("4", report(0.9, 0.9, 2, ratio + 1))


@pytest.mark.parametrize(
    ("result", "error", "expected"),
    [
        ({"epoch": 4, "epochs": 4}, False, "complete"),
        ({"epoch": 5, "epochs": 4}, False, "complete"),
        ({"epoch": 3, "epochs": 4}, False, "pruned"),
        ({"epoch": 4, "epochs": 4}, True, "failed"),
        ({"epoch": 3, "epochs": 4}, True, "failed"),
        ({"epoch": 4, "epochs": 4, FAILURE: "diverged"}, False, "failed"),
        ({FAILURE: "diverged"}, False, "failed"),
        ({"done": True}, False, "failed"),
        ({}, False, "failed"),
        (None, False, "failed"),
        (None, True, "failed"),
    ],
)
def test_how_a_trial_ended(result: dict[str, Any] | None, error: bool, expected: FinalState) -> None:
    assert final_state(result, error=error, judged_by=()) is expected

"""The judgement of a sweep: the champion of a grid wins by the rule, and only complete trials compete."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.judge.verdicts import Verdict, judge
from tokconv.sweep.record.events import FINISHED, TrialRecord
from tokconv.sweep.spec.schema import Champion, Target

GRIDS = (4, 6)
RULE = Champion()
FIGURE = st.integers(1, 20).map(lambda n: n / 100)


@st.composite
def sweeps(draw: st.DrawFn) -> list[TrialRecord]:
    states = st.sampled_from([*FINISHED, "running"])
    return [
        trial(
            f"{i:05d}", draw(st.sampled_from(GRIDS)), draw(states), draw(FIGURE), draw(FIGURE), cosine=1 - draw(FIGURE)
        )
        for i in range(draw(st.integers(0, 12)))
    ]


def verdicts(trials: list[TrialRecord], rule: Champion = RULE) -> list[Verdict]:
    return judge(trials, rule, TOKEN_GRID, baselines(*GRIDS))


def complete_at(trials: list[TrialRecord], verdict: Verdict) -> list[TrialRecord]:
    return [
        t for t in trials if t.state == "complete" and t.values["model.compressor.output_grid_size"] == verdict.grid
    ]


def point(found: TrialRecord) -> tuple[float, float]:
    return found.figures["val/fvu"], found.figures["val/swd"]


@given(sweeps())
def test_each_grid_has_one_verdict_over_its_complete_trials_alone(trials: list[TrialRecord]) -> None:
    found = verdicts(trials)
    assert [verdict.grid for verdict in found] == sorted(GRIDS)
    for verdict in found:
        assert list(verdict.trials) == complete_at(trials, verdict)
        assert verdict.ratio == TOKEN_GRID**2 / verdict.grid**2


@given(sweeps())
def test_no_complete_trial_of_the_grid_dominates_the_front(trials: list[TrialRecord]) -> None:
    for verdict in verdicts(trials):
        rivals = complete_at(trials, verdict)
        expected = {t.uid for t in rivals if not any(dominates(point(r), point(t)) for r in rivals)}
        assert {t.uid for t in verdict.front} == expected
        fvus = [t.figures["val/fvu"] for t in verdict.front]
        assert fvus == sorted(fvus, reverse=True)


@given(sweeps())
def test_the_champion_has_the_lowest_fvu_among_trials_that_meet_every_target(trials: list[TrialRecord]) -> None:
    for verdict in verdicts(trials):
        good = [t for t in complete_at(trials, verdict) if all(g.met(t.figures) for g in RULE.subject_to)]
        assert verdict.meets_targets == bool(good)
        if good:
            assert verdict.champion in good
            assert verdict.champion.figures["val/fvu"] == min(t.figures["val/fvu"] for t in good)
            assert verdict.missed == ()


@given(sweeps())
def test_without_such_trials_the_champion_is_the_nearest_and_names_what_it_misses(trials: list[TrialRecord]) -> None:
    rule = Champion(subject_to=(Target(metric="val/swd", sign="<=", limit=0.001),))
    for verdict in verdicts(trials, rule):
        rivals = complete_at(trials, verdict)
        assert (verdict.champion is None) == (not rivals)
        if verdict.champion is not None:
            assert verdict.champion.figures["val/swd"] == min(t.figures["val/swd"] for t in rivals)
            assert not verdict.meets_targets
            assert verdict.missed == (f"val/swd <= 0.001 (it has {verdict.champion.figures['val/swd']:.4g})",)


def test_a_target_of_zero_does_not_outweigh_the_others() -> None:
    rule = Champion(
        subject_to=(Target(metric="val/gain", sign=">=", limit=0), Target(metric="val/swd", sign="<=", limit=0.1))
    )
    slightly_worse_than_pooling, nothing_like_tokens = trial("0", fvu=0.101, swd=0.11), trial("1", fvu=0.1001, swd=5.0)
    found = verdicts([slightly_worse_than_pooling, nothing_like_tokens], rule)[1]
    assert found.champion is slightly_worse_than_pooling


def test_a_target_on_a_figure_that_no_trial_has_is_missed_by_name() -> None:
    rule = Champion(subject_to=(Target(metric="val/probe_kept", sign=">=", limit=0.95),))
    found = verdicts([trial("0", fvu=0.03), trial("1", fvu=0.02)], rule)[1]
    assert found.champion is not None
    assert found.champion.uid == "1"
    assert found.missed == ("val/probe_kept >= 0.95 (it has no such figure)",)

"""The judgement of a sweep: the champion of a grid and purpose wins by its rule, and only complete trials compete."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.sweep.judge.pareto import dominates
from tokconv.sweep.judge.verdicts import Verdict, best_epoch_rules, judge
from tokconv.sweep.record.events import FINISHED, TrialRecord
from tokconv.sweep.spec.rules import Rule, Rules, Target

GRIDS = (4, 6)
RULES = Rules()
LIKE_TOKENS = Target("val/swd", "<=", 0.1)
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


def verdicts(trials: list[TrialRecord], rules: Rules = RULES) -> list[Verdict]:
    return judge(trials, rules, TOKEN_GRID, baselines(*GRIDS))


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


@given(sweeps(), st.booleans())
def test_no_feasible_trial_of_the_grid_dominates_the_front(trials: list[TrialRecord], constrained: bool) -> None:
    rules = Rules(constraints=(LIKE_TOKENS,) if constrained else ())
    for verdict in verdicts(trials, rules):
        rivals = [t for t in complete_at(trials, verdict) if rules.feasible(t.figures)]
        expected = {t.uid for t in rivals if not any(dominates(point(r), point(t)) for r in rivals)}
        assert {t.uid for t in verdict.front} == expected
        fvus = [t.figures["val/fvu"] for t in verdict.front]
        assert fvus == sorted(fvus, reverse=True)


def test_the_front_is_of_the_auc_of_tokens_where_every_trial_has_it() -> None:
    trials = [trial("00000", 4, fvu=0.1, swd=0.2), trial("00001", 4, fvu=0.2, swd=0.1)]
    for found, auc in zip(trials, (0.6, 0.9), strict=True):
        assert verdicts(trials)[0].likeness == "val/swd"
        assert len(verdicts(trials)[0].front) == 2
        found.history[-1]["val/auc_token"] = auc
    assert verdicts(trials)[0].likeness == "val/auc_token"
    assert [kept.uid for kept in verdicts(trials)[0].front] == ["00000"]


@given(sweeps(), st.booleans())
def test_the_champion_is_the_best_of_the_trials_within_all_targets(trials: list[TrialRecord], of_all: bool) -> None:
    rules = Rules(constraints=(LIKE_TOKENS,)) if of_all else Rules({"fidelity": Rule(subject_to=(LIKE_TOKENS,))})
    for verdict in verdicts(trials, rules):
        complete = complete_at(trials, verdict)
        good = [t for t in complete if LIKE_TOKENS.met(t.figures)]
        if good:
            assert verdict.champion in good
            assert verdict.champion.figures["val/fvu"] == min(t.figures["val/fvu"] for t in good)
            assert verdict.first.refused == ""
        else:
            assert verdict.champion is None
            assert ("the nearest" in verdict.first.finding) == bool(complete)


def test_the_nearest_trial_is_named_and_a_target_of_zero_does_not_outweigh_the_others() -> None:
    rules = Rules(constraints=(Target("val/gain", ">=", 0), LIKE_TOKENS))
    slightly_worse_than_pooling, nothing_like_tokens = trial("0", fvu=0.101, swd=0.11), trial("1", fvu=0.1001, swd=5.0)
    award = verdicts([slightly_worse_than_pooling, nothing_like_tokens], rules)[1].first
    assert award.champion is None
    assert "the nearest, 0, misses val/gain >= 0 (it has -0.01), val/swd <= 0.1 (it has 0.11)" in award.finding


def test_a_target_on_a_figure_that_no_trial_has_is_missed_by_name() -> None:
    rules = Rules({"fidelity": Rule(subject_to=(Target("val/probe_kept", ">=", 0.95),))})
    finding = verdicts([trial("0", fvu=0.03), trial("1", fvu=0.02)], rules)[1].first.finding
    assert "misses val/probe_kept >= 0.95 (it has no such figure)" in finding


def test_the_published_targets_are_shown_and_decide_nothing() -> None:
    verdict = verdicts([trial("0", fvu=0.02, swd=0.5), trial("1", fvu=0.025, swd=0.05)])[1]
    assert verdict.champion is not None
    assert verdict.champion.uid == "0"
    assert verdict.first.missed == ("val/swd <= 0.1 (it has 0.5)",)


def test_a_champion_of_fidelity_is_judged_by_its_best_epoch_and_others_by_how_they_ended() -> None:
    """Figures of every epoch choose the epoch; the AUC exists after the last one only."""
    found = trial("00000", 6, fvu=0.05, swd=0.1, **{"val/auc_token": 0.6})
    start = {**found.figures, "epoch": 0, "val/fvu": 0.02, "val/auc_token": 0.9}
    found.best = {"val/fvu": start}
    plain = trial("00001", 6, fvu=0.03, swd=0.1, **{"val/auc_token": 0.7})
    known = {6: {name: {**row, "val/auc_token": 0.99} for name, row in baselines(6)[6].items()}}
    [verdict] = judge([found, plain], Rules(), TOKEN_GRID, known)
    fidelity, plug_in = verdict.award("fidelity"), verdict.award("plug-in")
    assert fidelity is not None
    assert plug_in is not None
    assert fidelity.champion is not None
    assert (fidelity.champion.uid, fidelity.champion.epochs_done) == ("00000", 0)
    assert fidelity.champion.figures == start
    # As it ended, 00000 breaks the bound of plug-in: window PCA's fvu.
    assert plug_in.champion == plain
    assert {(kept.uid, kept.epochs_done) for kept in verdict.front} >= {("00000", 0)}
    assert [rule.figure for rule in best_epoch_rules(Rules(), known)[6]] == ["val/fvu"]

"""Champions per purpose: each by its own figure, within its condition, against the baselines that compete."""

from __future__ import annotations

import itertools
from dataclasses import replace
from typing import Any

import pytest
from support.records import snapshot
from support.trials import TOKEN_GRID, figures, trial

from tokconv.evaluation.figures import FIGURES
from tokconv.evaluation.purposes import PURPOSES, best_first, is_better
from tokconv.sweep.judge.confirmations import missing_confirmations
from tokconv.sweep.judge.evidence import PENDING, PROVEN, UNCONFIRMED, UNPROVEN
from tokconv.sweep.judge.exports import unproven_notes
from tokconv.sweep.judge.verdicts import Award, Verdict, competitors, judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.report.results import results_frame
from tokconv.sweep.report.table import result_rows
from tokconv.sweep.spec.rules import Rule, Rules
from tokconv.sweep.spec.schema import Spec

SEED = "training.seed"
SPEC = Spec(name="demo", trials=1).with_objectives(())
KEPT, ADAPTED, AUC = "val/reader_kept", "val/adapted_kept", "val/auc_token"


def row(fvu: float, kept: float, adapted: float, auc: float, *, labels: bool = True) -> dict[str, float]:
    """Return the figures of a baseline."""
    return figures(fvu, 0.1, **({KEPT: kept, ADAPTED: adapted, AUC: auc} if labels else {AUC: auc}))


def baselines(*, labels: bool = True) -> dict[int, dict[str, dict[str, float]]]:
    return {
        6: {
            "pooling": row(0.1, 0.80, 0.93, 1.0, labels=labels),
            "max_norm": row(0.4, 0.50, 0.97, 0.6, labels=labels),
            "window_pca": row(0.03, 0.50, 0.95, 1.0, labels=labels),
            "matched_window_pca": row(0.03, 0.90, 0.94, 0.97, labels=labels),
        }
    }


def run(uid: str, fvu: float, kept: float, adapted: float = 0.9, auc: float = 0.9) -> TrialRecord:
    return trial(uid, fvu=fvu, **{KEPT: kept, ADAPTED: adapted, AUC: auc})


def confirmed(winner: TrialRecord, spread: float = 0.001) -> list[TrialRecord]:
    """Return three confirmations around a winner's figures."""
    found = []
    for number, step in enumerate((-spread, 0.0, spread), start=1):
        again = run(
            f"{winner.uid}-{number}",
            winner.figures["val/fvu"] + step / 10,
            *(winner.figures[name] + step for name in (KEPT, ADAPTED, AUC)),
        )
        found.append(replace(again, values={**winner.values, SEED: number}, confirms=winner.uid))
    return found


def verdict(*trials: TrialRecord, rules: Rules | None = None, labels: bool = True, seeds: int = 3) -> Verdict:
    repeats = [again for one in trials for again in confirmed(one)]
    known = baselines(labels=labels)
    return judge(trials, rules or Rules(), TOKEN_GRID, known, confirmations=repeats, seeds=seeds)[0]


def award(found: Verdict, purpose: str) -> Award:
    one = found.award(purpose)
    assert one is not None
    return one


def test_every_purpose_has_the_champion_of_its_own_figure() -> None:
    found = verdict(run("0", 0.02, 0.85), run("1", 0.025, 0.95), run("2", 0.2, 0.9, adapted=0.99))
    assert {purpose: one.champion and one.champion.uid for purpose in PURPOSES if (one := award(found, purpose))} == {
        "fidelity": "0",
        "plug-in": "1",
        "adapted": "2",
    }
    assert [one.evidence and one.evidence.status for one in found.awards] == [PROVEN] * 3
    assert [one.finding for one in found.awards] == [""] * 3


def test_a_trial_that_wins_at_two_epochs_has_a_row_for_each() -> None:
    def of_two_epochs(uid: str, luck: float = 0.0, **more: Any) -> TrialRecord:
        found = run(uid, 0.021 + luck, kept=0.97, adapted=0.99)
        early = {**found.figures, "epoch": 5, "val/fvu": 0.020 + luck, KEPT: 0.93}
        return replace(found, best={"val/fvu": early, KEPT: dict(found.figures)}, **more)

    repeats = [of_two_epochs(f"c06-{seed}", seed / 10_000, values={SEED: seed}, confirms="00003") for seed in (1, 2, 3)]
    [found] = judge([of_two_epochs("00003")], Rules(), TOKEN_GRID, baselines(), confirmations=repeats, seeds=3)
    figures_shown = [FIGURES["val/fvu"], FIGURES[KEPT]]
    rows = {cells[3]: cells[4:6] for cells, won in result_rows(found, figures_shown) if won}
    assert rows == {
        "fidelity: 00003": [FIGURES["val/fvu"].text(0.0202), FIGURES[KEPT].text(0.93)],
        "plug-in, adapted: 00003": [FIGURES["val/fvu"].text(0.0212), FIGURES[KEPT].text(0.97)],
    }
    [kept] = results_frame(snapshot([found.trials[0]], [found], SPEC)).to_dict("records")
    assert kept["val/fvu_mean"] == pytest.approx(0.0202)
    assert kept[f"{KEPT}_mean"] == pytest.approx(0.97)


def test_a_baseline_that_wins_at_the_figure_is_named_with_it_and_with_what_to_do() -> None:
    found = award(verdict(run("0", 0.02, 0.85, adapted=0.96)), "plug-in")
    assert found.evidence is not None
    assert found.evidence.status == UNPROVEN
    assert found.evidence.beaten_by == ("matched_window_pca",)
    assert "matched PCA (reader kept 90.0%) is at least as good" in found.finding
    assert "use matched PCA as it is, or search the weight of the adversarial loss" in found.finding
    adapted = award(verdict(run("0", 0.02, 0.85, adapted=0.96)), "adapted")
    assert adapted.evidence is not None
    assert adapted.evidence.beaten_by == ("max_norm",)


@pytest.mark.parametrize("names", [*itertools.permutations(("pooling", "tome", "prumerge"))])
def test_the_best_baseline_is_first_among_ties_in_any_order(names: tuple[str, ...]) -> None:
    """Each ties with its neighbour, and the shown one, pooling, is worse than the best."""
    rows = {"prumerge": {"val/fvu": 0.1}, "tome": {"val/fvu": 0.100009}, "pooling": {"val/fvu": 0.100018}}
    assert is_better("val/fvu", 0.1, 0.100018)
    assert best_first("val/fvu", names, rows) == ["prumerge", "tome", "pooling"]
    rows["pooling"] = {"val/fvu": 0.100005}
    assert best_first("val/fvu", names, rows) == ["pooling", "prumerge", "tome"]


def test_ties_and_what_is_equal_within_the_interval_are_no_wins() -> None:
    for kept in (0.9, 0.902):
        found = award(verdict(run("0", 0.02, kept)), "plug-in")
        assert found.evidence is not None
        assert (found.evidence.status, found.evidence.beaten_by) == (UNPROVEN, ("matched_window_pca",))


def test_a_plug_in_keeps_the_fvu_of_window_pca_also_at_the_worse_end() -> None:
    found = award(verdict(run("0", 0.031, 0.99), run("1", 0.029, 0.95)), "plug-in")
    assert found.champion is not None
    assert found.champion.uid == "1"
    alone = award(verdict(run("0", 0.031, 0.99)), "plug-in")
    assert alone.champion is None
    assert alone.finding.endswith(
        "misses val/fvu <= 0.03 (that of window PCA; it has 0.031); train longer (training.epochs), or lower "
        "loss.weights.wgan"
    )
    edge = award(verdict(run("0", 0.02999, 0.99)), "plug-in")
    assert edge.evidence is not None
    assert edge.evidence.status == UNPROVEN
    assert "misses val/fvu <= 0.03 (that of window PCA; it has" in edge.finding


def test_real_tokens_without_their_content_are_no_rivals_in_likeness() -> None:
    found = award(verdict(run("0", 0.02, 0.0, auc=0.7), labels=False), "plug-in")
    assert found.criterion.figure == AUC
    assert found.evidence is not None
    assert (found.evidence.status, found.evidence.beaten_by) == (PROVEN, ())
    assert len(found.evidence.remarks) == 1
    assert found.evidence.remarks[0].startswith("max norm (AUC token 0.600) does not compete")


def test_baselines_compete_at_figures_of_the_last_epoch_if_they_may_win_there() -> None:
    quick, known = baselines()[6], {"val/fvu", KEPT, ADAPTED, AUC}
    likeness = Rules({"fidelity": Rule(), "plug-in": Rule(figure=AUC)})
    assert competitors(likeness, quick, known) == {"window_pca", "matched_window_pca"}
    # What an adapted reader keeps is content: every baseline may win.
    assert competitors(Rules(), quick, known) == set(quick)
    assert competitors(Rules({"fidelity": Rule(), "plug-in": Rule()}), quick, known) == set()


def test_what_does_not_compete_decides_nothing_also_without_its_figure() -> None:
    known = baselines()
    rules = Rules({"fidelity": Rule(), "plug-in": Rule(figure=AUC)})
    one = run("0", 0.02, 0.9, auc=0.7)
    found = judge([one], rules, TOKEN_GRID, known, confirmations=confirmed(one), seeds=3)[0]
    for name in ("pooling", "max_norm"):
        del known[6][name][AUC]
    same = judge([one], rules, TOKEN_GRID, known, confirmations=confirmed(one), seeds=3)[0]
    for each, other in zip(found.awards, same.awards, strict=True):
        assert each.evidence is not None
        assert other.evidence is not None
        assert (each.evidence.status, each.evidence.beaten_by) == (other.evidence.status, other.evidence.beaten_by)
        assert each.evidence.status == PROVEN


def test_a_store_without_labels_has_no_adapted_champion_and_says_so() -> None:
    found = verdict(run("0", 0.02, 0.9), labels=False)
    assert [one.purpose.name for one in found.awards] == ["fidelity", "plug-in"]
    assert len(found.left_out) == 1
    assert "adapted: left out, there is no val/adapted_kept (it needs labels" in found.left_out[0]


def test_a_record_of_earlier_figures_is_judged_for_fidelity() -> None:
    known = {6: {"pooling": figures(0.1, 0.11), "window_pca": figures(0.03, 0.45)}}
    found = judge([trial("0", fvu=0.02)], Rules(), TOKEN_GRID, known)[0]
    assert [one.purpose.name for one in found.awards] == ["fidelity"]
    assert found.evidence is not None
    assert found.evidence.status == UNCONFIRMED
    assert judge([], Rules(), TOKEN_GRID, {6: {}})[0].champion is None


def test_a_winner_of_two_purposes_is_confirmed_once() -> None:
    both, adapted = run("00000", 0.02, 0.95), run("00001", 0.05, 0.5, adapted=0.99)
    trials = {one.uid: one for one in (both, adapted)}
    found = judge(trials.values(), Rules(), TOKEN_GRID, baselines(), seeds=3)
    assert [one.evidence and one.evidence.status for one in found[0].awards] == [PENDING] * 3
    assert {uid: len(awards) for uid, awards in found[0].champions.items()} == {"00000": 2, "00001": 1}
    configs = missing_confirmations(found, trials, {}, seeds=3, base_seed=0)
    assert [(config["uid"], config["confirms"]) for config in configs] == [
        *((f"c06-{number}", "00000") for number in (1, 2, 3)),
        *((f"c06-{number}", "00001") for number in (4, 5, 6)),
    ]


@pytest.mark.parametrize("labels", [True, False])
def test_a_single_compressor_is_judged_as_in_a_sweep(labels: bool) -> None:
    for one in (run("0", 0.02, 0.95, adapted=0.98), run("1", 0.03, 0.9, auc=0.97), run("2", 0.1, 0.5, auc=1.0)):
        found = verdict(one, labels=labels, rules=Rules(), seeds=0)
        for awarded in found.awards:
            exceeded, as_good = awarded.purpose.standing(
                {k: v for k, v in one.figures.items() if labels or k not in (KEPT, ADAPTED)}, found.baselines
            )
            if awarded.evidence is None:
                assert exceeded == pytest.approx(0.03, rel=2e-4)
            else:
                assert (exceeded, as_good) == (None, awarded.evidence.beaten_by)


def test_equal_accuracies_are_decided_by_fvu() -> None:
    found = award(verdict(run("0", 0.025, 0.95), run("1", 0.02, 0.95)), "plug-in")
    assert found.champion is not None
    assert found.champion.uid == "1"


def test_a_rule_may_name_another_figure() -> None:
    rules = Rules({"plug-in": Rule(figure=AUC)})
    found = verdict(run("0", 0.02, 0.95, auc=0.9), run("1", 0.02, 0.8, auc=0.7), rules=rules)
    assert [one.purpose.name for one in found.awards] == ["plug-in"]
    assert found.champion is not None
    assert found.champion.uid == "1"


@pytest.mark.parametrize("figure", ["val/auc_token_white", "val/auc_grid", "val/swd"])
def test_real_tokens_without_their_content_are_no_rivals_in_any_likeness(figure: str) -> None:
    known = baselines()
    for name, own in known[6].items():
        own[figure] = 0.05 if name == "max_norm" else 0.9
    one = trial("0", fvu=0.02, **{KEPT: 0.9, ADAPTED: 0.9, AUC: 0.9})
    one.history[-1][figure] = 0.6
    found = award(judge([one], Rules({"plug-in": Rule(figure=figure)}), TOKEN_GRID, known)[0], "plug-in")
    assert found.evidence is not None
    assert (found.evidence.status, found.evidence.beaten_by) == (UNCONFIRMED, ())
    assert "max norm" in found.evidence.remarks[0]


def test_the_last_lines_name_what_nothing_wins() -> None:
    found = verdict(run("0", 0.02, 0.85, adapted=0.5))
    lines = unproven_notes([found], {"6": {"adapted": {}}})
    assert [line.split(":")[0] for line in lines[:2]] == ["NO CHAMPION", "UNPROVEN"]
    assert lines[0].startswith("NO CHAMPION: plug-in at 6x6, nothing exported or registered: matched PCA")
    assert "--allow-unproven" in lines[-1]


@pytest.mark.parametrize("name", PURPOSES)
def test_purposes_name_figures_of_the_registry(name: str) -> None:
    entry = PURPOSES[name]
    named = [*entry.figures, *entry.proxies, *([entry.bound.figure] if entry.bound else [])]
    assert all(FIGURES[figure].objective for figure in named)


def test_the_closed_form_itself_does_not_break_the_bound_by_rounding() -> None:
    known = baselines()[6]
    known["matched_window_pca"]["val/fvu"] = known["window_pca"]["val/fvu"] * (1 + 2e-9)
    purpose = PURPOSES["plug-in"]
    start = known["matched_window_pca"]
    assert purpose.standing(start, known)[0] is None
    assert "matched_window_pca" in purpose.standing(start, known)[1]
    assert purpose.standing({**start, "val/fvu": 0.0301}, known)[0] is not None

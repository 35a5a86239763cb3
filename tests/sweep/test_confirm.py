"""Champions are judged over fresh seeds, at the worse end of the interval, against every baseline."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from scipy.special import stdtrit
from scipy.stats import ttest_1samp
from support.artefacts import write_export
from support.one_ray import one_ray
from support.sweeping import WINS, champions, events, spec
from support.trials import TOKEN_GRID, baselines, trial

from tokconv.errors import SpecError
from tokconv.exports.artefact import read_config
from tokconv.exports.champions import champions_in
from tokconv.sweep.judge.confirmations import end_stale_confirmations, missing_confirmations
from tokconv.sweep.judge.evidence import PENDING, PROVEN, UNCONFIRMED, UNPROVEN, gather_evidence, intervals
from tokconv.sweep.judge.exports import export_champions
from tokconv.sweep.judge.student import two_sided_quantile
from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.run import run_sweep
from tokconv.sweep.spec.file import parse_spec
from tokconv.sweep.spec.rules import Rule, Rules

SEED = "training.seed"
WINNER = trial("00000", fvu=0.02, swd=0.09)
RIVALS = baselines(6)[6]


def repeats(*pairs: tuple[float, float], state: str = "complete") -> list[TrialRecord]:
    """Return confirmations of the winner with these (fvu, swd)."""
    found = []
    for number, (fvu, swd) in enumerate(pairs, start=1):
        run = trial(f"c06-{number}", fvu=fvu, swd=swd, state=state)
        found.append(replace(run, values={**run.values, SEED: number}, confirms=WINNER.uid))
    return found


def test_the_interval_is_students() -> None:
    runs = repeats((0.02, 0.09), (0.023, 0.08), (0.018, 0.1))
    means, half_widths = intervals(runs)
    test = ttest_1samp([run.figures["val/fvu"] for run in runs], 0.0).confidence_interval(0.95)
    assert means["val/fvu"] - half_widths["val/fvu"] == pytest.approx(test.low)
    assert means["val/fvu"] + half_widths["val/fvu"] == pytest.approx(test.high)


@pytest.mark.parametrize("level", [0.5, 0.95, 0.99])
def test_the_quantile_is_scipys(level: float) -> None:
    for degrees in range(1, 50):
        expected = float(stdtrit(degrees, (1 + level) / 2))
        assert two_sided_quantile(level, degrees) == pytest.approx(expected, rel=1e-12)


def test_a_champion_is_proven_if_it_beats_every_baseline_at_its_figure() -> None:
    evidence = gather_evidence(WINNER, repeats((0.02, 0.09), (0.021, 0.091), (0.019, 0.089)), 3, RIVALS)
    assert evidence.status == PROVEN
    assert evidence.exported.uid == "c06-1"
    assert not evidence.beaten_by


def test_a_better_baseline_refuses_it_by_name_with_its_figure() -> None:
    evidence = gather_evidence(WINNER, repeats((0.04, 0.14), (0.0401, 0.141), (0.0399, 0.139)), 3, RIVALS)
    assert evidence.status == UNPROVEN
    assert evidence.beaten_by == ("matched_window_pca", "window_pca")
    assert "matched PCA (fvu 0.0300) and window PCA are at least as good as the worse end" in evidence.summary


def test_a_tie_is_no_win() -> None:
    assert gather_evidence(WINNER, repeats((0.03, 0.05), (0.03, 0.05), (0.03, 0.05)), 3, RIVALS).status == UNPROVEN


def test_the_worse_end_of_the_interval_decides() -> None:
    """The mean beats window PCA's 0.03; the spread shows that this may be luck."""
    pairs = [(0.02, 0.14), (0.036, 0.14), (0.022, 0.14)]
    assert sum(fvu for fvu, _ in pairs) / 3 < 0.03
    assert gather_evidence(WINNER, repeats(*pairs), 3, RIVALS).beaten_by == ("matched_window_pca", "window_pca")


def test_a_failed_seed_proves_nothing() -> None:
    runs = repeats((0.02, 0.09), (0.02, 0.09), (0.02, 0.09))
    runs[1] = replace(runs[1], state="failed", reason="the generator's loss is not finite")
    evidence = gather_evidence(WINNER, runs, 3, RIVALS)
    assert evidence.status == UNPROVEN
    assert "seed 2 (c06-2) failed: the generator's loss is not finite" in evidence.summary


def test_unfinished_confirmations_are_pending() -> None:
    runs = repeats((0.02, 0.09), (0.02, 0.09))
    assert gather_evidence(WINNER, runs, 3, RIVALS).status == PENDING
    assert gather_evidence(WINNER, [*runs[:1], replace(runs[1], state="running")], 2, RIVALS).status == PENDING


@pytest.mark.parametrize("fvu", [0.03, 0.05])
def test_a_winner_whose_own_run_beats_no_baseline_is_not_confirmed(fvu: float) -> None:
    beaten = trial("00000", fvu=fvu, swd=0.2)
    evidence = gather_evidence(beaten, [], 3, RIVALS)
    assert (evidence.status, evidence.label, evidence.exported) == (UNPROVEN, "unproven", beaten)
    assert evidence.beaten_by == ("matched_window_pca", "window_pca")
    assert (
        "not confirmed: matched PCA (fvu 0.0300) and window PCA are at least as good as the search's own run (fvu"
        in (evidence.summary)
    )
    verdicts = judge([beaten], Rules(), TOKEN_GRID, baselines(6), seeds=3)
    assert missing_confirmations(verdicts, {beaten.uid: beaten}, {}, seeds=3, base_seed=0) == []


def test_without_confirmation_nothing_is_proven() -> None:
    assert gather_evidence(WINNER, [], 0, RIVALS).status == UNCONFIRMED
    beaten = trial("00000", fvu=0.05, swd=0.2)
    assert gather_evidence(beaten, [], 0, RIVALS).status == UNPROVEN


def test_fresh_seeds_are_asked_for_once() -> None:
    trials = {WINNER.uid: WINNER}
    verdicts = judge(trials.values(), Rules(), TOKEN_GRID, baselines(6), seeds=3)
    configs = missing_confirmations(verdicts, trials, {}, seeds=3, base_seed=0)
    assert [config["uid"] for config in configs] == ["c06-1", "c06-2", "c06-3"]
    assert [config["values"][SEED] for config in configs] == [1, 2, 3]
    done = {run.uid: run for run in repeats((0.02, 0.09), (0.02, 0.09))}
    done["c06-2"].state = "running"
    again = missing_confirmations(verdicts, trials, done, seeds=3, base_seed=0)
    assert [(config["uid"], config["values"][SEED]) for config in again] == [("c06-2", 2), ("c06-3", 3)]
    assert missing_confirmations(verdicts, trials, {}, seeds=0, base_seed=0) == []


def test_confirmations_that_are_no_longer_wanted_end(tmp_path: Path) -> None:
    for seeds, state in ((3, "running"), (0, "pruned")):
        record = Record(tmp_path / f"{seeds}.jsonl")
        record.append("sweep_started", token_grid=TOKEN_GRID)
        record.append("trial_started", trial="c06-1", values={SEED: 1}, grid=6, ratio=16.0, confirms=WINNER.uid)
        verdicts = judge([WINNER], Rules(), TOKEN_GRID, baselines(6), seeds=seeds)
        end_stale_confirmations(record, verdicts, seeds=seeds)
        assert record.confirmations["c06-1"].state == state
        record.close()


def test_a_purpose_that_is_no_longer_judged_keeps_no_export(tmp_path: Path) -> None:
    directory = SweepDirectory(tmp_path)
    for purpose in ("fidelity", "plug-in"):
        write_export(directory.champion(6, purpose))
    waiting = judge([WINNER], Rules({"fidelity": Rule()}), TOKEN_GRID, baselines(6), seeds=3)
    assert export_champions(waiting, directory, allow_unproven=False) == {}
    assert [purpose for _, purpose in champions_in(tmp_path)] == ["fidelity"]


@pytest.mark.parametrize("confirm", [{"seeds": 1}, {"seeds": "many"}, {"sees": 3}, 3, {"seeds": math.inf}])
def test_an_impossible_confirmation_is_refused(confirm: object, tmp_path: Path) -> None:
    with pytest.raises(SpecError, match="confirm"):
        parse_spec(spec(tmp_path, confirm=confirm))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_confirms_its_winners_and_grows_on_resume(tmp_path: Path) -> None:
    plain = spec(tmp_path, base=WINS, trials=2, search={"model.compressor.output_grid_size": {"choice": [6, 8]}})
    with one_ray():
        first = run_sweep(parse_spec(plain))
        assert not first.confirmations
        result = run_sweep(parse_spec({**plain, "confirm": {"seeds": 2}}), resume=True, allow_unproven=True)
    assert sorted(result.confirmations) == ["c06-1", "c06-2", "c08-1", "c08-2"]
    assert sorted(result.trials) == ["00000", "00001"]
    seeds = [run.values[SEED] for run in result.confirmations.values()]
    assert 0 not in seeds
    for verdict in result.verdicts:
        assert [award.purpose.name for award in verdict.awards] == ["fidelity", "plug-in", "adapted"]
        assert all(award.evidence is None or award.evidence.status in (PROVEN, UNPROVEN) for award in verdict.awards)
    ended = [award for purposes in champions(result.directory).values() for award in purposes.values()]
    assert {award["run"] for award in ended} <= set(result.confirmations)
    for award in ended:
        evidence = read_config(result.directory / award["export"])["evidence"]
        assert (evidence["status"], evidence["figure"]) == (award["evidence"], award["figure"])
    started = [event for event in events(result.directory) if event["event"] == "trial_started"]
    assert [event.get("kind") for event in started].count("confirm") == 4
    assert yaml.safe_load((result.directory / "spec.yaml").read_text())["confirm"] == {"seeds": 2}
    again = run_sweep(parse_spec({**plain, "confirm": {"seeds": 2}}), resume=True)
    assert sorted(again.confirmations) == sorted(result.confirmations)

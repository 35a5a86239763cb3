"""Replays of early stopping: savings and losses follow from the trials alone and are 0 if nothing is stopped."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trials import EPOCHS, trial

from tokconv.errors import ConfigError, SweepError
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.log import Record
from tokconv.sweep.search.replay import load_complete, print_replay, replay
from tokconv.sweep.spec.file import to_yaml
from tokconv.sweep.spec.rules import AXES
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.spec.sections import EarlyStopping, Objective
from tokconv.system.files import write_text

GRIDS = (4, 6)
POOLING = dict.fromkeys(GRIDS, (0.1, 0.11))
FIGURE = st.integers(1, 9).map(lambda n: n / 100)
RULES = st.builds(EarlyStopping, min_epochs=st.integers(1, 10), reduction=st.integers(2, 20))


@st.composite
def sweeps(draw: st.DrawFn) -> list[TrialRecord]:
    count = draw(st.integers(1, 12))
    return [trial(f"{i:05d}", draw(st.sampled_from(GRIDS)), fvu=draw(FIGURE), swd=draw(FIGURE)) for i in range(count)]


def chain(count: int) -> list[TrialRecord]:
    """Return trials of one grid that each dominate the next at every epoch."""
    return [trial(f"{i:05d}", fvu=0.01 + 0.002 * i, swd=0.01 + 0.002 * i) for i in range(count)]


@given(sweeps())
def test_without_a_rule_nothing_is_saved_and_nothing_is_lost(trials: list[TrialRecord]) -> None:
    found = replay(trials, None, pooling=POOLING, orders=3)
    assert found.saved == found.lost_to_pooling == found.lost_to_worst == (0, 0, 0)
    assert found.best_survives == 1


@given(sweeps(), RULES, st.sampled_from([AXES, AXES[:1], AXES[1:]]), st.integers(1, 5))
@settings(max_examples=50)
def test_shares_are_shares_and_repeat_with_the_seed(
    trials: list[TrialRecord], rule: EarlyStopping, axes: tuple[str, ...], concurrency: int
) -> None:
    found = replay(trials, rule, axes=axes, pooling=POOLING, concurrency=concurrency, orders=5, seed=7)
    for mean, low, high in (found.saved, found.lost_to_pooling, found.lost_to_worst):
        assert 0 <= low <= high <= 1
        assert low - 1e-12 <= mean <= high + 1e-12
    assert found.saved[2] < 1
    if found.saved == (0, 0, 0):
        assert found.lost_to_pooling == found.lost_to_worst == (0, 0, 0)
    assert found == replay(trials, rule, axes=axes, pooling=POOLING, concurrency=concurrency, orders=5, seed=7)


@given(sweeps(), st.integers(EPOCHS, 50))
def test_a_first_rung_at_the_end_stops_nothing(trials: list[TrialRecord], min_epochs: int) -> None:
    found = replay(trials, EarlyStopping(min_epochs=min_epochs, reduction=2), pooling=POOLING, orders=3)
    assert found.saved == (0, 0, 0)


@given(sweeps(), RULES)
@settings(max_examples=50)
def test_curves_that_never_cross_cost_nothing(trials: list[TrialRecord], rule: EarlyStopping) -> None:
    """A trial on the final front is then on the front at every rung, and a front goes on."""
    found = replay(trials, rule, pooling=POOLING, concurrency=3, orders=5)
    assert found.lost_to_pooling == pytest.approx((0, 0, 0), abs=1e-12)
    assert found.lost_to_worst == pytest.approx((0, 0, 0), abs=1e-12)


def test_the_best_trial_stopped_early_costs_what_it_alone_dominated() -> None:
    """One trial ends best, but at the only rung both of its figures are the worst."""
    late = trial("late", fvu=0.01, swd=0.01)
    late.history[0] |= {"val/fvu": 1.0, "val/swd": 1.0}
    trials = [late, *(trial(f"{i}", fvu=0.02, swd=0.02) for i in range(8))]
    found = replay(trials, EarlyStopping(min_epochs=1, reduction=9), pooling=POOLING, orders=200)
    last_of_all = 1 - (0.08 * 0.09) / (0.09 * 0.10)
    assert found.lost_to_pooling[1:] == pytest.approx((0, last_of_all))
    # It survives only if it is the first at the rung: one order in nine.
    assert found.best_survives == pytest.approx(1 / 9, abs=0.08)


def test_comparing_both_figures_keeps_a_front_that_one_figure_cuts() -> None:
    trials = [trial(f"{i:05d}", fvu=0.01 + 0.005 * i, swd=0.09 - 0.005 * i) for i in range(12)]
    rule = EarlyStopping(min_epochs=1, reduction=3)
    both = replay(trials, rule, pooling=POOLING, orders=50)
    each = [replay(trials, rule, axes=(axis,), pooling=POOLING, orders=50) for axis in AXES]
    assert both.saved == both.lost_to_pooling == (0, 0, 0)
    assert all(found.saved[0] > 0.2 and found.lost_to_pooling[0] > 0.1 for found in each)


def test_a_harder_rule_saves_more_of_a_chain() -> None:
    trials = chain(30)
    saved = [replay(trials, EarlyStopping(min_epochs=2, reduction=r), orders=50).saved[0] for r in (2, 3)]
    earlier = replay(trials, EarlyStopping(min_epochs=1, reduction=3), orders=50).saved[0]
    assert 0 < saved[0] < saved[1] < earlier


def write_sweep(
    directory: Path, trials: list[TrialRecord], *, report: bool = True, objectives: Sequence[Objective] = ()
) -> Path:
    record = Record(directory / "events.jsonl")
    for found in trials:
        record.append("trial_started", trial=found.uid, values=found.values, ratio=found.ratio)
        for row in found.history:
            record.append("trial_reported", trial=found.uid, epoch=row["epoch"], figures=row)
        if found.state != "running":
            record.append("trial_ended", trial=found.uid, state=found.state)
    record.append("trial_started", trial="c06-1", values={}, grid=6, ratio=16.0, kind="confirm", confirms="00000")
    record.append("trial_reported", trial="c06-1", epoch=1, figures={"val/fvu": 0.1, "val/swd": 0.1})
    record.append("trial_started", trial="c06-1", values={}, grid=6, ratio=16.0, kind="confirm", confirms="00000")
    record.append("trial_ended", trial="c06-1", state="complete")
    record.close()
    spec = Spec(name="full", trials=4, concurrency=2)
    write_text(directory / "spec.yaml", to_yaml(spec.model_copy(update={"objectives": tuple(objectives)})))
    if report:
        grid = {"compression_ratio": 16.0, "baselines": {"pooling": {"val/fvu": 0.1, "val/swd": 0.11}}}
        write_text(directory / "report" / "champions.json", json.dumps({"6": grid}))
    return directory


def test_a_sweep_on_disk_is_read_without_its_confirmations_and_its_divergences(tmp_path: Path) -> None:
    trials = [*chain(6), trial("00009", state="failed", epochs=1)]
    before = (write_sweep(tmp_path, trials) / "events.jsonl").read_bytes()
    found, pooling, concurrency = load_complete(tmp_path)
    assert [each.uid for each in found] == [each.uid for each in chain(6)]
    assert pooling == {6: (0.1, 0.11)}
    assert concurrency == 2
    assert (tmp_path / "events.jsonl").read_bytes() == before


def test_the_table_has_a_row_for_each_rule_and_comparison(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_sweep(tmp_path, chain(8))
    print_replay(tmp_path, min_epochs=[1, 2], reductions=[2, 3], orders=5, seed=0)
    text = capsys.readouterr().out
    assert text.isascii()
    assert "8 trials of 9 epochs, 2 at a time, in 5 random orders" in text
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()][1:]
    assert [row[:2] for row in rows] == [[m, r] for m in "12" for r in "23" for _ in range(3)]
    assert max(map(len, text.splitlines())) <= 120


def test_the_table_has_the_figures_of_the_objectives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    objectives = [Objective(metric="val/fvu", mode="min"), Objective(metric="val/auc_token", mode="min")]
    trials = [trial(f"{i:05d}", fvu=0.01 + 0.002 * i, **{"val/auc_token_quick": 1 - 0.1 * i}) for i in range(4)]
    write_sweep(tmp_path, trials, objectives=objectives)
    print_replay(tmp_path, min_epochs=[1], reductions=[2], orders=5, seed=0)
    text = capsys.readouterr().out
    assert "objectives: fvu and AUC quick" in text
    # Nothing dominates any trial on these two.
    assert next(line.split()[3] for line in text.splitlines() if line.split()[2] == "objectives") == "0.0"
    assert max(map(len, text.splitlines())) <= 120


@pytest.mark.parametrize("state", ["pruned", "running"])
def test_a_sweep_that_stopped_trials_is_refused(tmp_path: Path, state: str) -> None:
    write_sweep(tmp_path, [trial("00000"), trial("00001", state=state, epochs=2)])
    with pytest.raises(SweepError, match=r"1 of 2 trials did not run to their end.*early_stopping=none"):
        load_complete(tmp_path)


def test_a_sweep_that_cannot_be_replayed_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SweepError, match="holds no sweep"):
        load_complete(tmp_path)
    with pytest.raises(SweepError, match="no trial is complete"):
        load_complete(write_sweep(tmp_path / "a", []))
    write_sweep(tmp_path / "b", chain(2), report=False)
    with pytest.raises(ConfigError, match="--reduction: got 1; must be at least 2"):
        print_replay(tmp_path / "b", min_epochs=[1], reductions=[1], orders=5, seed=0)
    print_replay(tmp_path / "b", min_epochs=[1], reductions=[2], orders=5, seed=0)
    assert "no report/champions.json" in capsys.readouterr().out
    (tmp_path / "b" / "report").mkdir()
    (tmp_path / "b" / "report" / "champions.json").write_text("[]")
    with pytest.raises(SweepError, match="damaged"):
        load_complete(tmp_path / "b")

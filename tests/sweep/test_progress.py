"""The display of a sweep: lines in a log, a view of a fixed size on a terminal."""

from __future__ import annotations

import io
import re
from dataclasses import dataclass, field, replace

import pytest
from rich.console import Console
from support.terminals import Clock, Terminal
from support.trials import EPOCHS, TOKEN_GRID, baselines, trial

from tokconv.sweep.judge.verdicts import judge
from tokconv.sweep.record.events import RefusedPoint, TrialRecord
from tokconv.sweep.report.progress import SweepDisplay
from tokconv.sweep.report.text import values_text
from tokconv.sweep.spec.rules import Rules

GRIDS = (4, 6, 8, 12)
STATES = ("complete", "pruned", "failed", "running")


@dataclass
class Trials:
    """The part of a `Record` that a display reads."""

    trials: dict[str, TrialRecord] = field(default_factory=dict)
    confirmations: dict[str, TrialRecord] = field(default_factory=dict)
    refused: dict[str, RefusedPoint] = field(default_factory=dict)

    def put(self, *found: TrialRecord) -> Trials:
        self.trials |= {t.uid: t for t in found}
        return self


def display(console: Console, clock: Clock, total: int = 4) -> SweepDisplay:
    return SweepDisplay(
        name="demo-001",
        total=total,
        epochs=EPOCHS,
        judge=lambda trials: judge(trials, Rules(), TOKEN_GRID, baselines(*GRIDS)),
        console=console,
        clock=clock,
    )


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def log() -> Console:
    return Console(file=io.StringIO(), force_terminal=False, force_interactive=False)


def lines(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_a_log_has_a_line_when_a_trial_starts_and_one_when_it_ends(log: Console, clock: Clock) -> None:
    record = Trials()
    with display(log, clock) as shown:
        shown.update(record.put(trial("00000", state="running", epochs=0)))
        shown.update(record.put(trial("00000", state="running", epochs=5)))
        shown.update(record.put(trial("00000", fvu=0.0123, swd=0.0912)))
        shown.update(record.put(trial("00001", state="running", epochs=0)))
        shown.update(record.put(trial("00001", state="pruned", epochs=2)))
        failed = trial("00002", state="failed", epochs=0)
        failed.reason = "the loss is not finite " * 10
        shown.update(record.put(trial("00002", state="running", epochs=0)))
        shown.update(record.put(failed))
    first, *events, last = lines(log)
    assert "4 trials" in first
    assert events == [
        "trial 00000 started: 16x n_critic=3 wgan=0.0123",
        "trial 00000 complete after epoch 9: fvu 0.0123, swd 0.091",
        "trial 00001 started: 16x n_critic=3 wgan=0.0123",
        "trial 00001 stopped early after epoch 2: fvu 0.0200, swd 0.090",
        "trial 00002 started: 16x n_critic=3 wgan=0.0123",
        f"trial 00002 failed after epoch 0: {failed.reason}",
    ]
    assert "3/4 trials finished: 1 complete, 1 stopped early, 1 failed" in last
    assert "\x1b" not in "".join(lines(log))


def test_the_log_of_a_resumed_sweep_does_not_repeat_finished_trials(log: Console, clock: Clock) -> None:
    record = Trials().put(*(trial(f"{i:05d}") for i in range(3)), trial("00003", state="running", epochs=4))
    with display(log, clock) as shown:
        shown.update(record)
    assert [line for line in lines(log) if line.startswith("trial")] == [
        "trial 00003 continues after epoch 4: 16x n_critic=3 wgan=0.0123"
    ]


def test_a_log_has_a_progress_line_now_and_then_with_the_time_left(log: Console, clock: Clock) -> None:
    record = Trials().put(trial("00000", state="running", epochs=0))
    with display(log, clock) as shown:
        shown.update(record)
        for epoch in range(1, 9):
            clock.now += 10
            shown.update(record.put(trial("00000", state="running", epochs=epoch)))
    progress = [line for line in lines(log) if line.startswith("0/4")]
    assert len(progress) == 4
    # 2 of 4 * 9 epochs in 20 seconds leave 34, at 10 seconds each.
    assert progress[0] == "0/4 trials finished; 1 running (20 s, about 5 min 40 s left)"


def test_the_time_left_counts_only_the_epochs_of_this_run(log: Console, clock: Clock) -> None:
    record = Trials().put(trial("00000"), trial("00001"), trial("00002"), trial("00003", state="running", epochs=1))
    with display(log, clock) as shown:
        shown.update(record)
        clock.now += 20
        shown.update(record.put(trial("00003", state="running", epochs=2)))
    assert "(20 s, about 2 min 20 s left)" in "\n".join(lines(log))


def test_confirmations_are_counted_separately_and_take_time(log: Console, clock: Clock) -> None:
    def repeat(uid: str, state: str, epochs: int) -> TrialRecord:
        return replace(trial(uid, state=state, epochs=epochs), confirms="00000")

    record = Trials().put(*(trial(f"{i:05d}") for i in range(4)))
    record.confirmations = {"c06-1": repeat("c06-1", "running", 1)}
    with display(log, clock) as shown:
        shown.expect(3)
        shown.update(record)
        clock.now += 20
        record.confirmations = {"c06-1": repeat("c06-1", "running", 2)}
        shown.update(record)
        record.confirmations = {"c06-1": repeat("c06-1", "complete", EPOCHS)}
        shown.update(record)
    text = "\n".join(lines(log))
    # One epoch takes 20 seconds; 7 of this confirmation and 9 of each of the other two are left.
    assert "4/4 trials finished: 4 complete; 0/3 confirmations; 1 running (20 s, about 8 min 20 s left)" in text
    assert "c06-1 (confirms trial 00000) complete after epoch 9" in text
    assert "4/4 trials finished: 4 complete; 1/3 confirmations" in lines(log)[-1]


@pytest.mark.parametrize("width", [80, 100, 200])
def test_the_live_view_fits_the_terminal_with_a_thousand_trials(clock: Clock, width: int) -> None:
    shown = display(Console(force_terminal=True, width=width, height=24), clock, total=1000)
    reasons = [trial(f"{i:05d}", GRIDS[i % 4], STATES[i % 4 if i < 800 else 3]) for i in range(900)]
    for found in reasons:
        found.reason = "a very long reason " * 20
    shown.update(Trials().put(*reasons))
    clock.now += 60
    paper = Console(file=io.StringIO(), width=width, height=24, force_terminal=True, color_system=None)
    paper.print(shown._view())
    text = lines(paper)
    assert len(text) <= 24
    assert all(len(line) <= width for line in text)
    page = "\n".join(text)
    assert "600/1000 trials finished: 200 complete, 200 stopped early, 200 failed; 300 running" in page or width == 80
    assert re.search(r"and \d+ more running", page)
    for grid in GRIDS:
        assert re.search(rf"^ *{grid}x{grid} +[0-9.]+x +fidelity +fvu ", page, re.MULTILINE)


def test_the_live_view_shows_running_trials_and_the_best_of_each_grid(clock: Clock) -> None:
    shown = display(Console(force_terminal=True, width=80, height=24), clock)
    shown.update(
        Trials().put(
            trial("00000", 6, fvu=0.0123, swd=0.0876),
            trial("00001", 4, fvu=0.0234, swd=0.2),
            trial("00002", 12, "pruned", fvu=0.001, swd=0.05),
            trial("00003", 8, "running", fvu=0.03, swd=0.1, epochs=3),
        )
    )
    paper = Console(file=io.StringIO(), width=80)
    paper.print(shown._view())
    page = [" ".join(line.split()) for line in lines(paper)]
    assert "00003 9x 3/9 0.0300 0.100 n_critic=3 wgan=0.0123" in page
    assert "6x6 16x fidelity fvu 0.0123 matched PCA 0.0300 0.0123" in page
    assert "4x4 36x fidelity fvu 0.0234 matched PCA 0.0300 0.0234" in page
    assert "12x12 4x fidelity fvu - matched PCA 0.0300 -" in page


def test_the_live_view_runs_on_a_terminal_and_leaves_one_line(clock: Clock) -> None:
    console = Console(file=Terminal(), force_terminal=True, width=80, height=24)
    with display(console, clock) as shown:
        shown.message("[brackets] are text")
        shown.update(Trials().put(trial("00000")))
    assert isinstance(console.file, io.StringIO)
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", console.file.getvalue())
    assert "[brackets] are text" in text
    assert text.rstrip().endswith("sweep demo-001: 1/4 trials finished: 1 complete (0 s)")


def test_the_champions_so_far_compete_as_the_trials_they_are(log: Console, clock: Clock) -> None:
    """A champion by its best epoch has other figures than the trial as it ended."""
    adapted = "val/adapted_kept"
    known = {6: {name: {**row, adapted: 0.5} for name, row in baselines(6)[6].items()}}
    found = SweepDisplay(
        name="x", total=3, epochs=EPOCHS, judge=lambda t: judge(t, Rules(), TOKEN_GRID, known), console=log, clock=clock
    )
    first, second, third = (
        trial(uid, fvu=fvu, **{adapted: kept})
        for uid, fvu, kept in (("0", 0.028, 0.93), ("1", 0.025, 0.90), ("2", 0.029, 0.7))
    )
    second.best = {"val/fvu": {**second.figures, "epoch": 5, "val/fvu": 0.020, adapted: 0.99}}
    record = Trials()
    for one in (first, second, third):
        found.update(record.put(one))  # type: ignore[arg-type]
    [expected] = judge(record.trials.values(), Rules(), TOKEN_GRID, known)
    [shown] = found._progress.verdicts
    assert shown.award("adapted").champion == expected.award("adapted").champion == first  # type: ignore[union-attr]


def test_names_of_values_are_as_short_as_possible() -> None:
    values = {
        "model.compressor.output_grid_size": 6,
        "model.compressor.num_layers": 2,
        "model.autoencoder.num_layers": 1,
        "loss.wgan.lambda_gp": 12.3456,
        "model.compressor.init": "pca",
    }
    assert values_text(values) == "compressor.num_layers=2 autoencoder.num_layers=1 lambda_gp=12.3 init=pca"
    assert values_text({}) == ""

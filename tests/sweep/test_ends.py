"""How a search ends in unusual ways: with fewer trials than it began, with none that is complete, before its first."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path

import psutil
import pytest
from support.champions_folders import write_champions
from support.records import write_sweep
from support.stores import write_store
from support.trials import TOKEN_GRID

from tokconv.cli.main import main
from tokconv.errors import SweepError
from tokconv.exports.champions import champions_in
from tokconv.exports.dynamic.compressor import FOLDER
from tokconv.sweep.judge.confirmations import end_stale_trials
from tokconv.sweep.judge.exports import export_dynamic
from tokconv.sweep.judge.snapshot import read_sweep
from tokconv.sweep.record.driver import registered, stop
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.record.remote import restore
from tokconv.sweep.report import status
from tokconv.sweep.report.outcome import next_steps
from tokconv.sweep.trials.tuning import check_any_ended
from tokconv.system.storage import Remote


@contextmanager
def record_of(path: Path, *states: str) -> Iterator[Record]:
    """Yield a record of trials in these states."""
    with closing(Record(path)) as record:
        record.append("sweep_started", token_grid=TOKEN_GRID)
        for number, state in enumerate(states):
            uid = f"{number:05d}"
            record.append("trial_started", trial=uid, values={}, grid=6, ratio=16.0)
            if state != "running":
                record.append("trial_ended", trial=uid, state=state, reason=f"reason {number}")
        yield record


def test_no_trial_runs_on_in_a_search_that_was_made_shorter(tmp_path: Path) -> None:
    with record_of(tmp_path / "events.jsonl", "complete", "running", "failed", "running") as record:
        end_stale_trials(record, trials=2)
        assert [trial.state for trial in record.trials.values()] == ["complete", "pruned", "failed", "pruned"]
        assert record.unfinished() == []


def test_a_search_of_failed_trials_alone_is_an_error_with_the_last_reason(tmp_path: Path) -> None:
    with (
        record_of(tmp_path / "failed.jsonl", "failed", "failed", "failed") as record,
        pytest.raises(SweepError, match=r"all of the 3 trials failed, the last with: reason 2; .*--resume"),
    ):
        check_any_ended(record)


@pytest.mark.parametrize("states", [(), ("failed", "complete"), ("pruned", "failed"), ("running",)])
def test_one_trial_that_did_not_fail_is_enough(tmp_path: Path, states: tuple[str, ...]) -> None:
    with record_of(tmp_path / "events.jsonl", *states) as record:
        check_any_ended(record)


def test_a_sweep_that_ended_before_its_first_trial_does_not_wait(tmp_path: Path) -> None:
    directory = write_sweep(tmp_path, trials=4)
    directory.events.write_bytes(b"")
    with registered(directory.path), pytest.raises(SweepError, match="has not begun yet"):
        read_sweep(directory)
    with pytest.raises(SweepError, match=r"ended before its first trial; go on with: .* --resume"):
        read_sweep(directory)


@pytest.mark.parametrize("begun", [True, False])
def test_a_sweep_that_was_stopped_is_reported_as_that_also_before_its_first_trial(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], begun: bool
) -> None:
    directory = write_sweep(tmp_path, trials=4)
    if not begun:
        directory.events.write_bytes(b"")
    monkeypatch.setattr(status, "stop_driver", lambda path, timeout: None)
    status.stop_sweep(str(directory.path), storage="runs", timeout=1)
    told = "4/4 trials finished" if begun else "before its first trial"
    assert f"tiny-001: stopped, {told}" in capsys.readouterr().out


def test_the_choice_of_a_grid_goes_with_the_champions_it_chose_from(tmp_path: Path) -> None:
    store, directory = write_store(tmp_path / "store", num_images=200), SweepDirectory(tmp_path / "sweep")
    write_champions(directory.champions, store, grids=(2, 3))
    export_dynamic({"2": {"fidelity"}, "3": {"fidelity", "plug-in"}}, directory, store)
    report = directory.report / "dynamic.txt"
    assert (directory.champions / FOLDER).is_dir()
    assert report.is_file()
    export_dynamic({"2": {"fidelity"}, "3": {"plug-in"}}, directory, store)
    assert not (directory.champions / FOLDER).exists()
    assert not report.exists()
    assert len(champions_in(directory.champions)) == 2


@pytest.mark.parametrize("seconds", ["-1", "nan"])
def test_an_impossible_timeout_stops_nothing(capsys: pytest.CaptureFixture[str], seconds: str) -> None:
    assert main(["stop", "tiny", f"--timeout={seconds}"]) == 2
    assert f"--timeout: got {seconds}; must be a number of seconds" in capsys.readouterr().err


@pytest.mark.parametrize("error", [psutil.AccessDenied, psutil.NoSuchProcess])
def test_a_driver_of_another_user_or_one_that_just_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[psutil.Error]
) -> None:
    def refuse(process: psutil.Process, number: int) -> None:
        raise error(process.pid)

    monkeypatch.setattr(psutil.Process, "send_signal", refuse)
    expected = pytest.raises(SweepError, match="ask its owner") if error is psutil.AccessDenied else nullcontext()
    with registered(tmp_path), expected:
        # The driver is this very process, which would not stop itself.
        monkeypatch.setattr(os, "getpid", lambda: 1)
        stop(tmp_path, timeout=1)


def test_an_older_run_does_not_offer_to_go_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """`--resume` continues the newest run of the name, whichever page or status the command was copied from."""
    older = write_sweep(tmp_path, trials=4, ended=False)
    assert "--resume" in str(next_steps(read_sweep(older)))
    newer = write_sweep(tmp_path, trials=4, ended=False)
    for directory, offered in ((older, False), (newer, True)):
        assert ("--resume" in str(next_steps(read_sweep(directory)))) is offered
        status.print_status(str(directory.path), storage="runs", as_json=False)
        told = capsys.readouterr().out
        assert ("go on with: tokconv sweep SPEC --resume" in told) is offered
        assert ("a newer run: tiny-002" in told) is not offered


def test_a_lost_study_of_a_sweep_at_a_url_comes_back_from_there(tmp_path: Path) -> None:
    """The record here stays, which may be ahead of the one there."""
    directory, remote = write_sweep(tmp_path, trials=4), Remote(f"file://{tmp_path}/there")
    record = directory.events.read_bytes()
    (remote / "events.jsonl/00000").write(record[: record.index(b"\n") + 1])
    (remote / "study.journal/00000").write(b"{}\n")
    restore(directory, remote)
    assert directory.journal.read_bytes() == b"{}\n"
    assert directory.events.read_bytes() == record
    directory.journal.write_bytes(b"{}\n{}\n")
    restore(directory, remote)
    assert directory.journal.read_bytes() == b"{}\n{}\n"

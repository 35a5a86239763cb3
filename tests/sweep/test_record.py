"""The event log: appended events are read back, whatever happened in between."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from tokconv.errors import SweepError
from tokconv.sweep.record.events import Trials
from tokconv.sweep.record.figures import finite
from tokconv.sweep.record.layout import SweepDirectory, relative_place
from tokconv.sweep.record.log import Record, read_events
from tokconv.system.storage import Remote

Open = Callable[[Path], Record]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "sweep" / "events.jsonl"


@pytest.fixture
def open_record() -> Iterator[Open]:
    with ExitStack() as stack:
        yield lambda path: stack.enter_context(closing(Record(path)))


def start(record: Record, uid: str = "00000") -> None:
    record.append("trial_started", trial=uid, values={"training.n_critic": 3}, grid=6, ratio=16.0)


def report(record: Record, epoch: int, fvu: float, uid: str = "00000", **fields: Any) -> None:
    record.append("trial_reported", trial=uid, epoch=epoch, figures={"val/fvu": fvu}, **fields)


def fvus(record: Record, uid: str = "00000") -> list[tuple[float, float]]:
    return [(row["epoch"], row["val/fvu"]) for row in record.trials[uid].history]


def test_a_reopened_record_has_the_same_trials(open_record: Open, path: Path) -> None:
    record = open_record(path)
    record.append("sweep_started", sweep="demo-001")
    start(record, "00000")
    start(record, "00001")
    report(record, 1, 0.2, "00000", checkpoint="epoch-0001")
    report(record, 2, 0.1, "00000", checkpoint=None)
    record.append("trial_ended", trial="00000", state="complete")
    record.append("trial_ended", trial="00001", state="failed", reason="loss is not finite")
    start(record, "00002")
    record.close()
    again = open_record(path)
    assert again.trials == record.trials
    assert [trial.uid for trial in again.unfinished()] == ["00002"]
    first, second = again.trials["00000"], again.trials["00001"]
    assert (first.state, first.checkpoint, first.figures["val/fvu"]) == ("complete", "epoch-0001", 0.1)
    assert (second.state, second.reason, second.figures) == ("failed", "loss is not finite", {})


@pytest.mark.parametrize("root", ["/old/runs", "s3://bucket/runs", "/a/sweeps/b-001/trials/runs"])
def test_a_checkpoint_is_found_by_its_place_in_the_sweep(open_record: Open, path: Path, root: str) -> None:
    """Older records hold its whole path, under which a moved sweep has nothing and a copied one finds the original."""
    record, place = open_record(path), "trials/00000/checkpoints/epoch-0001"
    start(record)
    record.append_report("00000", {"epoch": 1, "val/fvu": 0.1}, f"{root}/sweeps/demo-001/{place}")
    assert record.trials["00000"].checkpoint == place
    assert f'"checkpoint":"{place}"' in path.read_text()
    report(record, 2, 0.1, checkpoint=f"{root}/sweeps/demo-001/{place}")
    assert record.trials["00000"].checkpoint == place
    sweep = SweepDirectory(path.parent)
    assert sweep.place(place) == str(path.parent / place)
    assert SweepDirectory(path.parent, Remote("s3://b/sweeps/x-001")).place(place) == f"s3://b/sweeps/x-001/{place}"
    for elsewhere in ("/tmp/report", "s3://bucket/epoch-0001"):
        assert relative_place(elsewhere) == sweep.place(elsewhere) == elsewhere


def test_an_epoch_reported_again_replaces_it_and_what_came_after(open_record: Open, path: Path) -> None:
    record = open_record(path)
    start(record)
    for epoch in (1, 2, 3):
        report(record, epoch, epoch / 10)
    start(record)
    report(record, 2, 0.25)
    assert fvus(record) == [(1, 0.1), (2, 0.25)]
    report(record, 3, 0.35)
    assert fvus(record) == fvus(open_record(path)) == [(1, 0.1), (2, 0.25), (3, 0.35)]


def test_a_trial_that_starts_again_is_running_with_its_history(open_record: Open, path: Path) -> None:
    record = open_record(path)
    start(record)
    report(record, 1, 0.1)
    record.append("trial_ended", trial="00000", state="failed", reason="its node died")
    start(record)
    trial = record.trials["00000"]
    assert (trial.state, trial.reason, trial.ended, len(trial.history)) == ("running", "", None, 1)


def test_the_time_of_a_trial_has_no_pauses() -> None:
    hour = 3_600_000
    started = {"event": "trial_started", "trial": "0", "values": {}, "grid": 6, "ratio": 16.0}
    trials = Trials(Path("events.jsonl"))
    for event in (
        {**started, "time": 0},
        {"event": "trial_reported", "trial": "0", "epoch": 1, "figures": {}, "time": 60_000},
        {**started, "time": 10 * hour},
        {"event": "trial_ended", "trial": "0", "state": "complete", "time": 10 * hour + 30_000},
        {"event": "trial_artifacts", "trial": "0", "time": 20 * hour},
    ):
        trials.apply(event)
    assert trials.trials["0"].seconds == 90


@pytest.mark.parametrize("cut", [1, 2, 30, 10_000])
def test_a_torn_last_line_is_dropped_and_the_log_goes_on_well(open_record: Open, path: Path, cut: int) -> None:
    record = open_record(path)
    start(record)
    report(record, 1, 0.1)
    before = path.stat().st_size
    report(record, 2, 0.2)
    record.close()
    os.truncate(path, max(before, path.stat().st_size - cut))
    torn = open_record(path)
    assert fvus(torn) == [(1, 0.1)]
    report(torn, 2, 0.3)
    assert fvus(open_record(path)) == [(1, 0.1), (2, 0.3)]


@pytest.mark.parametrize("damage", [b"{\n", b"\x00\x00\x00\n", b"[1, 2]\n", b'{"trial": "00000"}\n', b"\xff\xfe\n"])
def test_a_damaged_line_in_the_middle_is_refused(open_record: Open, path: Path, damage: bytes) -> None:
    record = open_record(path)
    start(record)
    record.close()
    path.write_bytes(damage + path.read_bytes())
    with pytest.raises(SweepError, match="damaged before byte"):
        open_record(path)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_refused_before_writing(open_record: Open, path: Path, value: float) -> None:
    record = open_record(path)
    start(record)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="JSON"):
        report(record, 1, value)
    assert path.read_bytes() == before
    assert fvus(record) == []
    assert finite({"a": value, "b": 1}) == {"b": 1.0}


def test_an_event_of_an_unknown_trial_is_refused_before_it_is_written(open_record: Open, path: Path) -> None:
    record = open_record(path)
    with pytest.raises(SweepError, match="never started"):
        report(record, 1, 0.1)
    assert path.read_bytes() == b""


def test_events_of_an_older_version_give_the_grid_by_the_ratio(open_record: Open, path: Path) -> None:
    record = open_record(path)
    with pytest.raises(SweepError, match="00000 has no grid"):
        record.append("trial_started", trial="00000", values={}, ratio=16.0)
    assert path.read_bytes() == b""
    record.append("sweep_started", token_grid=24)
    record.append("trial_started", trial="00000", values={}, ratio=16.0)
    record.append("trial_started", trial="00001", values={"model.compressor.output_grid_size": 5}, ratio=576 / 25)
    for known in (record, open_record(path)):
        assert [(trial.grid, trial.ratio) for trial in known.trials.values()] == [(6, 16.0), (5, 576 / 25)]


def test_a_full_disk_leaves_no_half_line(open_record: Open, path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    record = open_record(path)
    start(record)

    def no_space(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", no_space)
        with pytest.raises(OSError, match="No space left"):
            report(record, 1, 0.1)
    assert fvus(record) == []
    report(record, 1, 0.2)
    assert fvus(open_record(path)) == [(1, 0.2)]


def test_threads_append_whole_lines(open_record: Open, path: Path) -> None:
    record = open_record(path)

    def run(number: int) -> None:
        uid = f"{number:05d}"
        start(record, uid)
        for epoch in range(1, 6):
            report(record, epoch, epoch / 10, uid)
            record.unfinished()
        record.append("trial_ended", trial=uid, state="complete")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(run, range(24)))
    record.close()
    again = open_record(path)
    assert len(again.trials) == 24
    assert again.trials == record.trials
    assert all(len(trial.history) == 5 and trial.state == "complete" for trial in again.trials.values())


def test_a_reader_follows_by_offset_and_waits_for_the_end_of_a_line(open_record: Open, path: Path) -> None:
    assert list(read_events(path)) == []
    record = open_record(path)
    start(record)
    [(event, offset)] = list(read_events(path))
    assert event["event"] == "trial_started"
    assert list(read_events(path, offset)) == []
    report(record, 1, 0.1)
    with path.open("ab") as file:
        file.write(b'{"event": "trial_rep')
    [(event, end)] = list(read_events(path, offset))
    assert event["event"] == "trial_reported"
    assert path.read_bytes()[offset:end].endswith(b"\n")

"""Measuring the baselines of several grids, with a second process that starts at the other end."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from shutil import copytree

import pytest
from support.stores import write_store

from tokconv.evaluation.baseline_figures import baseline_figures
from tokconv.evaluation.evaluator import Figures
from tokconv.store.reader import TokenStore
from tokconv.system.terminal import ProgressLine
from tokconv.training import baselines
from tokconv.training.baselines import measure_baselines


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "alone", num_images=24, num_classes=0)
    copytree(tmp_path / "alone", tmp_path / "helped")
    alone = measure_baselines(TokenStore.open(tmp_path / "alone"), [2, 4])
    monkeypatch.setattr(baselines, "WORTHWHILE_SECONDS", 0.0)
    monkeypatch.setattr(baselines.os, "cpu_count", lambda: 2)
    helped = TokenStore.open(tmp_path / "helped")
    names = {4: [entry.name for entry in baselines.available(helped, 4)]}
    with baselines._from_the_other_end(helped, names, full=True) as process:
        process.wait(600)
    assert all(baselines.is_measured(helped, 4, entry) for entry in baselines.available(helped, 4))
    assert measure_baselines(helped, [2, 4]) == alone


def test_chosen_baselines_alone_get_the_figures_that_train_networks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    store = write_store(tmp_path / "store", num_images=120, num_classes=0)
    asked: dict[int, set[str]] = {}

    def in_full(grid: int, quick: Mapping[str, Figures]) -> set[str]:
        asked[grid] = set(quick)
        return {name for name, figures in quick.items() if figures["val/fvu"] < 1.001 * quick["window_pca"]["val/fvu"]}

    found = measure_baselines(store, [2], in_full=in_full)[2]
    assert asked == {2: set(found)}
    tested = {name for name, figures in found.items() if "val/auc_token" in figures}
    assert {"window_pca", "matched_window_pca"} <= tested < set(found)
    lines = capsys.readouterr().out.splitlines()
    total = len(found)
    assert any(line.startswith(f"baselines, quick figures: {total}/{total}, in ") for line in lines)
    # What was measured in full is not measured again, and all are there once all were asked for.
    everything = measure_baselines(store, [2])[2]
    assert {name: everything[name] for name in tested} == {name: found[name] for name in tested}
    assert measure_baselines(store, [2], in_full=lambda grid, quick: set())[2] == everything
    assert capsys.readouterr().out.count(f"{total}/{total}") == 2


def test_a_pace_is_told_only_once_both_processes_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The pace of one process would say twice the time that both take."""
    store, calls = write_store(tmp_path / "store", num_images=24, num_classes=0), []
    monkeypatch.setattr(baselines, "WORTHWHILE_SECONDS", 0.0)
    monkeypatch.setattr(baselines.os, "cpu_count", lambda: 2)
    monkeypatch.setattr(baselines, "_from_the_other_end", lambda *args, **kwargs: nullcontext())

    def show(self: ProgressLine, done: int, total: int, note: str = "", *, timed: bool = True) -> None:
        calls.append((done, total, timed))

    monkeypatch.setattr(ProgressLine, "__call__", show)
    names = [entry.name for entry in baselines.available(store, 2)]
    measured = baseline_figures(store, 2, names)

    def other_process(*args: object, progress: Callable[[str], None], **kwargs: object) -> dict[str, Figures]:
        for count in (1, 2, 4, 5):
            done.update(names[:count])
            progress(names[count - 1])
        return measured

    done: set[str] = set()
    monkeypatch.setattr(baselines, "is_measured", lambda store, grid, entry, full: entry.name in done)
    monkeypatch.setattr(baselines, "baseline_figures", other_process)
    baselines._measure(store, {2: names}, full=True)
    total = len(names)
    assert calls == [(1, total, False), (2, total, False), (4, total, True), (5, total, True)]

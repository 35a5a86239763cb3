"""Measuring the baselines of several grids, with a second process that starts at the other end."""

from __future__ import annotations

from pathlib import Path
from shutil import copytree

import pytest
from support.stores import write_store

from tokconv.store.reader import TokenStore
from tokconv.training import baselines
from tokconv.training.baselines import measure_baselines


def test_two_processes_find_what_one_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_store(tmp_path / "alone", num_images=24, num_classes=0)
    copytree(tmp_path / "alone", tmp_path / "helped")
    alone = measure_baselines(TokenStore.open(tmp_path / "alone"), [2, 4])
    monkeypatch.setattr(baselines, "WORTHWHILE_SECONDS", 0.0)
    monkeypatch.setattr(baselines.os, "cpu_count", lambda: 2)
    helped = TokenStore.open(tmp_path / "helped")
    with baselines._from_the_other_end(helped, [4]) as process:
        process.wait(60)
    assert all(baselines.is_measured(helped, 4, entry) for entry in baselines.available(helped, 4))
    assert measure_baselines(helped, [2, 4]) == alone

"""What all tests share: no deadline per example, one thread, sleeping OpenMP threads, and a working Ctrl-C."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from pathlib import Path

# Before torch loads. Spinning OpenMP threads of one process starve the other processes on the same cores, and tests
# start many: five training steps took 192 s beside one of them and take 12 s this way.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import pytest
import torch
from hypothesis import settings
from support.databases import copy_tables
from support.sweeping import SHARED_STORES
from support.untracked import leave_trainings_untracked

settings.register_profile("tokconv", deadline=None, max_examples=50)
settings.load_profile("tokconv")
torch.set_num_threads(1)
# A developer's own tracking server must not receive what tests track.
os.environ.pop("MLFLOW_TRACKING_URI", None)
leave_trainings_untracked()
# Shells start what runs in the background with it ignored, and so would every process that a test interrupts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

LONGEST_FIRST = (
    *("test_runners", "test_sweep", "test_remote_sweep", "test_notebooks", "test_jobs", "test_workers", "test_chaos"),
    *("test_autoscaling", "test_faults", "test_confirm_sweep", "test_confirm", "test_full_disk", "test_driver"),
)
"""Files whose slow tests take minutes: they start first, so that no worker is left alone with one at the end."""
SHARE_FIXTURES = (
    *("test_workers", "test_jobs", "test_mlflow_ui", "test_tracking_server", "test_notebooks", "test_runners"),
)
"""Files whose slow tests share a fixture that takes longer than they do. Other slow tests run where there is room."""


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder of shared stores, once per session: the workers of pytest-xdist inherit it."""
    # Without pytest-xdist (-p no:xdist) its marker is unknown.
    config.addinivalue_line("markers", "xdist_group(name): tests of one group run in one process")
    if SHARED_STORES not in os.environ:
        os.environ[SHARED_STORES] = folder = tempfile.mkdtemp(prefix="tokconv-stores-")
        config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    copy_tables(Path(os.environ[SHARED_STORES]))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the fast tests first, then the slow ones, and keep together in one worker those that share fixtures."""

    def slow(item: pytest.Item) -> bool:
        return item.get_closest_marker("slow") is not None

    last = len(LONGEST_FIRST)
    order = {file: number for number, file in enumerate(LONGEST_FIRST)}
    items.sort(key=lambda item: (slow(item), order.get(item.path.stem, last) if slow(item) else last))
    for item in items:
        if item.get_closest_marker("xdist_group") is None and (not slow(item) or item.path.stem in SHARE_FIXTURES):
            item.add_marker(pytest.mark.xdist_group(f"{'slow' if slow(item) else 'fast'}-{item.path.stem}"))

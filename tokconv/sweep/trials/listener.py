"""The listener that writes what Ray Tune reports into the sweep's record, and has finished trials exported."""

from __future__ import annotations

import errno
import math
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from ray.tune import Callback
from ray.tune.experiment import Trial

from tokconv.errors import CheckpointError, StorageError
from tokconv.models.windows import compression_ratio
from tokconv.sweep.judge.exports import READ_PATIENCE_SECONDS
from tokconv.sweep.record.events import TrialRecord
from tokconv.sweep.record.figures import recorded_figures
from tokconv.sweep.record.final_state import FAILURE, final_state, missing_objectives
from tokconv.sweep.record.log import Record
from tokconv.sweep.spec.outline import GRID_KEY
from tokconv.sweep.trials.watchdog import timeout_reason
from tokconv.system.storage import local_copy
from tokconv.training.checkpoint import load_state

SAME_FAILURES = 5
"""If this many trials fail for one reason before any other ends, it is no accident of the search."""
MAX_LOSSES = 20
"""How often a trial may lose its process and go on from its checkpoint: a machine that is taken away leaves no other
sign. A trial that fails by itself is tried once more, because a file system may have been away."""
OWN_ERROR = ("ray::", "creation task")
"""Marks in the text of an error that a trial's own code raised; the error of a lost process has none of them."""
FAILURE_HEAD = "Failure # "
"""The start of every error in Ray Tune's error file."""
DISK_FULL = re.compile(rf"\[Errno {errno.ENOSPC}\][^\n']*(?:'([^'\n]*)')?")
DIGITS = re.compile(r"\d+")

Finish = Callable[[TrialRecord], Path]
"""Exports a complete trial's compressor, draws its picture, and returns the directory it wrote, relative to the
sweep's."""


class Listener(Callback):
    """A Tune callback that writes every event to the record, then calls `on_event`.

    Args:
        token_grid: G of the store.
        base_grid: the output grid of trials that do not search for one.
        judged_by: the objectives' figures.
        finish: runs in a thread of its own, so that the sweep does not wait for pictures.
        trial_timeout: the spec's, in seconds; 0 for no limit. The error of a process that its watchdog ended does not
            hold the reason.
    """

    def __init__(
        self,
        record: Record,
        *,
        token_grid: int,
        base_grid: int,
        judged_by: Sequence[str],
        finish: Finish,
        on_event: Callable[[], None],
        trial_timeout: float = 0.0,
    ) -> None:
        self._record, self._finish, self._on_event = record, finish, on_event
        self._token_grid, self._base_grid = token_grid, base_grid
        self._judged_by, self._trial_timeout = judged_by, trial_timeout
        self._last_report: dict[str, float] = {}
        self._reasons: list[str] | None = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finish")
        # Complete trials whose export an earlier driver did not live to finish.
        self._pending = [
            self._pool.submit(self._export, trial)
            for trial in (*record.trials.values(), *record.confirmations.values())
            if trial.state == "complete" and not trial.has_artifacts
        ]

    @property
    def common_failure(self) -> str | None:
        """The reason for which the first trials of this run all failed, so that the search should end; None if there is
        none."""
        reasons = self._reasons
        if reasons is None or len(reasons) < SAME_FAILURES or len({DIGITS.sub("", reason) for reason in reasons}) > 1:
            return None
        return reasons[0]

    def on_refused(self, uid: str, values: Mapping[str, Any], reason: str) -> None:
        """Record an invalid point of the search once; no trial starts for it."""
        if uid not in self._record.refused:
            self._record.append("point_refused", point=uid, values=values, reason=reason)
            self._on_event()

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        values, confirms = trial.config["values"], trial.config.get("confirms")
        kind = {} if confirms is None else {"kind": "confirm", "confirms": confirms}
        grid = int(values.get(GRID_KEY, self._base_grid))
        ratio = compression_ratio(self._token_grid, grid)
        self._last_report[trial.config["uid"]] = time.monotonic()
        self._record.append("trial_started", trial=trial.config["uid"], values=values, grid=grid, ratio=ratio, **kind)
        self._on_event()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if FAILURE in result or "epoch" not in result:
            return
        uid, checkpoint = trial.config["uid"], result.get("checkpoint_path")
        self._last_report[uid] = time.monotonic()
        known = self._record.find(uid)
        if known.checkpoint is not None and known.figures == {**recorded_figures(result), "epoch": result["epoch"]}:
            # A trial that was resumed reports again where it stands.
            return
        last = int(known.figures.get("epoch", -1))
        for missed in _between(checkpoint, last, int(result["epoch"])):
            self._record.append_report(uid, missed, None)
        self._record.append_report(uid, result, checkpoint)
        self._on_event()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Limit how often Ray Tune runs the trial again, by what ended it."""
        error = _error_text(trial)
        _check_disk(error)
        if any(mark in error for mark in OWN_ERROR) or self._is_hung(trial):
            trial.max_failures = trial.run_metadata.num_failures
        self._last_report[trial.config["uid"]] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _check_disk(_error_text(trial))
        self._end(trial, error=True)

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Tune pickles its callbacks for a restore that the sweep's own record replaces."""
        return {}

    def __enter__(self) -> Listener:
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        """Wait for all exports; after an error for the one at work only: the next driver makes the others."""
        if kind is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
        else:
            self.close()

    def close(self) -> None:
        """Wait for exports and pictures, and raise the first error among them."""
        self._pool.shutdown(wait=True)
        for future in self._pending:
            future.result()

    def _end(self, trial: Trial, *, error: bool) -> None:
        result, uid = trial.last_result, trial.config["uid"]
        state = final_state(result, error=error, judged_by=self._judged_by)
        reason = ""
        if state == "failed":
            reason = self._failure(trial, result, error=error)
        elif state == "pruned":
            reason = f"stopped after epoch {result['epoch']} of {result['epochs']}: dominated at its rung"
        self._record.append("trial_ended", trial=uid, state=state, reason=reason)
        if state != "failed":
            self._reasons = None
        elif self._reasons is not None:
            self._reasons.append(reason)
        self._on_event()
        if state == "complete":
            self._pending.append(self._pool.submit(self._export, self._record.find(uid)))
        # Tune keeps windows of every figure, 40 kB per trial, for an analysis that the record replaces.
        trial.metric_n_steps.clear()
        trial.metric_analysis.clear()

    def _failure(self, trial: Trial, result: Mapping[str, Any] | None, *, error: bool) -> str:
        if error and self._is_hung(trial):
            return timeout_reason(self._trial_timeout)
        if not result:
            return _last_line(trial)
        absent = missing_objectives(result, self._judged_by)
        if not error and FAILURE not in result and "epoch" in result and absent:
            return f"ended without {', '.join(absent)}, an objective of this sweep"
        return str(result.get(FAILURE) or _last_line(trial))

    def _is_hung(self, trial: Trial) -> bool:
        """Return whether its watchdog ended it, which the error of a lost process does not report."""
        silent = time.monotonic() - self._last_report.get(trial.config["uid"], math.inf)
        return 0 < self._trial_timeout <= silent

    def _export(self, trial: TrialRecord) -> None:
        self._record.append("trial_artifacts", trial=trial.uid, path=str(self._finish(trial)))


def _between(checkpoint: str | None, last: int, epoch: int) -> list[dict[str, Any]]:
    """Return the figures of the epochs between two reports, from the checkpoint of the later one.

    A worker whose driver was killed may finish some more epochs before it ends, and nobody hears of them.
    """
    if checkpoint is None or epoch <= last + 1:
        return []
    try:
        with local_copy(checkpoint, retry_seconds=READ_PATIENCE_SECONDS) as place:
            history: list[dict[str, Any]] = load_state(place)["history"]
    except (CheckpointError, StorageError, OSError, KeyError):
        return []
    return [row for row in history if last < row["epoch"] < epoch]


def _last_line(trial: Trial) -> str:
    return (_error_text(trial) or "the trial ended without a result").splitlines()[-1].strip()[:500]


def _error_text(trial: Trial) -> str:
    """Return the text of the trial's last error; "" if none is known.

    It is read from the driver's own file: what `trial.get_error` reads arrives in the sweep's storage later.
    """
    try:
        content = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    except OSError:
        return ""
    last = content.rpartition(FAILURE_HEAD)[2]
    return (last.partition("\n")[2] if FAILURE_HEAD in content else last).strip()


def _check_disk(error: str) -> None:
    """Stop the sweep if a full disk ended the trial: no trial fails for it, and the sweep can be resumed.

    Raises:
        OSError: the disk is full.
    """
    if found := DISK_FULL.search(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), found[1] or "the disk of a trial")

"""What Ray Tune tells, written into the sweep's record, and what follows from it for a finished trial."""

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
from tokconv.sweep.judge.exports import READ_PATIENCE_SECONDS
from tokconv.sweep.record.events import Record, TrialRecord, kept_figures
from tokconv.sweep.record.outcome import FAILURE, Outcome, missing, outcome
from tokconv.sweep.trials.watchdog import hung
from tokconv.system.storage import fetched
from tokconv.training.checkpoint import load_state

SAME_FAILURES = 5
"""So many trials that fail for one reason, before any other has ended, are no accident of the search."""
MAX_LOSSES = 20
"""Times that a trial may lose its process and go on from its checkpoint: machines that go say nothing of it. What
fails by itself is tried once more, for a file system may have been away."""
OWN_ERROR = ("ray::", "creation task")
"""What the text of an error has that a trial's own code raised, and not that of a process that is gone."""
FAILURE_HEAD = "Failure # "
"""Of every error in Ray Tune's file of them."""
DISK_FULL = re.compile(rf"\[Errno {errno.ENOSPC}\][^\n']*(?:'([^'\n]*)')?")
DIGITS = re.compile(r"\d+")

Finish = Callable[[TrialRecord], Path]
"""Exports a complete trial's compressor and draws its picture; the directory it wrote comes back, relative to the
sweep's."""


class Listener(Callback):
    """A Tune callback: every event goes to the record, then to `on_event`.

    Args:
        ratio: of a trial's searched values.
        judged_by: the objectives' figures.
        finish: runs in a thread of its own, so that the sweep does not wait for pictures.
        timeout: `resources.trial_timeout`: what it was ended for is not in the error of a process that is gone.
    """

    def __init__(
        self,
        record: Record,
        *,
        ratio: Callable[[Mapping[str, Any]], float],
        judged_by: Sequence[str],
        finish: Finish,
        on_event: Callable[[], None],
        timeout: float | None = None,
    ) -> None:
        self._record, self._ratio, self._finish, self._on_event = record, ratio, finish, on_event
        self._judged_by, self._timeout = judged_by, timeout
        self._heard: dict[str, float] = {}
        self._reasons: list[str] | None = []
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="finish")
        # Those that an earlier driver was killed over.
        left = [trial for trial in (*record.trials.values(), *record.confirmations.values()) if _lacks_artifacts(trial)]
        self._pending = [self._pool.submit(self._keep, trial) for trial in left]

    @property
    def hopeless(self) -> str | None:
        """Why the search should end: the first trials of this run all failed, and for one reason; None when not."""
        reasons = self._reasons
        if reasons is None or len(reasons) < SAME_FAILURES or len({DIGITS.sub("", reason) for reason in reasons}) > 1:
            return None
        return reasons[0]

    def on_trial_start(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        values, confirms = trial.config["values"], trial.config.get("confirms")
        kind = {} if confirms is None else {"kind": "confirm", "confirms": confirms}
        ratio = self._ratio(values)
        self._heard[trial.config["uid"]] = time.monotonic()
        self._record.append("trial_started", trial=trial.config["uid"], values=values, ratio=ratio, **kind)
        self._on_event()

    def on_trial_result(
        self, iteration: int, trials: list[Trial], trial: Trial, result: dict[str, Any], **info: Any
    ) -> None:
        if FAILURE in result or "epoch" not in result:
            return
        uid, figures = trial.config["uid"], kept_figures(result)
        self._heard[uid] = time.monotonic()
        known = self._record.find(uid)
        if known.checkpoint is not None and known.figures == {**figures, "epoch": result["epoch"]}:
            # A trial that was resumed says again where it stands.
            return
        last = int(known.history[-1]["epoch"]) if known.history else 0
        for missed in _between(result.get("checkpoint_path"), last, int(result["epoch"])):
            figures_then = kept_figures(missed)
            self._record.append(
                "trial_reported", trial=uid, epoch=missed["epoch"], figures=figures_then, checkpoint=None
            )
        self._record.append(
            "trial_reported",
            trial=uid,
            epoch=result["epoch"],
            figures=figures,
            checkpoint=result.get("checkpoint_path"),
        )
        self._on_event()

    def on_trial_recover(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        """Ray Tune will run it again; how often yet depends on what ended it."""
        error = _error_text(trial)
        _check_disk(error)
        if any(mark in error for mark in OWN_ERROR) or self._is_hung(trial):
            trial.max_failures = trial.run_metadata.num_failures
        self._heard[trial.config["uid"]] = time.monotonic()

    def on_trial_complete(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        self._end(trial, error=False)

    def on_trial_error(self, iteration: int, trials: list[Trial], trial: Trial, **info: Any) -> None:
        _check_disk(_error_text(trial))
        self._end(trial, error=True)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing: Tune pickles its callbacks for a restore that the sweep's own record replaces."""
        return {}

    def close(self) -> None:
        """Wait for exports and pictures; the first error among them is raised."""
        self._pool.shutdown(wait=True)
        for future in self._pending:
            future.result()

    def _end(self, trial: Trial, *, error: bool) -> None:
        result, uid = trial.last_result, trial.config["uid"]
        state = outcome(result, error=error, judged_by=self._judged_by)
        reason = ""
        if state is Outcome.FAILED:
            reason = self._why(trial, result, error=error)
        elif state is Outcome.PRUNED:
            reason = f"stopped after epoch {result['epoch']} of {result['epochs']}: dominated at its rung"
        self._record.append("trial_ended", trial=uid, state=state.value, reason=reason)
        if state is not Outcome.FAILED:
            self._reasons = None
        elif self._reasons is not None:
            self._reasons.append(reason)
        self._on_event()
        if state is Outcome.COMPLETE:
            self._pending.append(self._pool.submit(self._keep, self._record.find(uid)))
        # Tune keeps windows of every figure of every trial, 40 kB each, for an analysis that the record replaces.
        trial.metric_n_steps.clear()
        trial.metric_analysis.clear()

    def _why(self, trial: Trial, result: Mapping[str, Any] | None, *, error: bool) -> str:
        if error and self._timeout is not None and self._is_hung(trial):
            return hung(self._timeout)
        if not result:
            return _last_line(trial)
        absent = missing(result, self._judged_by)
        if not error and FAILURE not in result and "epoch" in result and absent:
            return f"ended without {', '.join(absent)}, an objective of this sweep"
        return str(result.get(FAILURE) or _last_line(trial))

    def _is_hung(self, trial: Trial) -> bool:
        """Whether its watchdog ended it: what it says is not in the error of a process that is gone."""
        silent = time.monotonic() - self._heard.get(trial.config["uid"], math.inf)
        return self._timeout is not None and silent >= self._timeout

    def _keep(self, trial: TrialRecord) -> None:
        self._record.append("trial_artifacts", trial=trial.uid, path=str(self._finish(trial)))


def _between(checkpoint: str | None, last: int, epoch: int) -> list[dict[str, Any]]:
    """Figures of the epochs between two reports, from the checkpoint of the later one: a worker whose driver was killed
    may end some more epochs before it ends itself, and nobody hears of them."""
    if checkpoint is None or epoch <= last + 1:
        return []
    try:
        with fetched(checkpoint, patience=READ_PATIENCE_SECONDS) as place:
            history: list[dict[str, Any]] = load_state(place)["history"]
    except (CheckpointError, StorageError, OSError, KeyError):
        return []
    return [row for row in history if last < row["epoch"] < epoch]


def _lacks_artifacts(trial: TrialRecord) -> bool:
    return trial.state == "complete" and not trial.has_artifacts


def _last_line(trial: Trial) -> str:
    return (_error_text(trial) or "the trial ended without a result").splitlines()[-1].strip()[:500]


def _error_text(trial: Trial) -> str:
    """What ended it last, "" when nothing is known.

    From the driver's own file: what `trial.get_error` reads is in the sweep's storage, where it arrives later.
    """
    try:
        content = Path(trial.error_file).read_text(encoding="utf-8") if trial.error_file else ""
    except OSError:
        return ""
    last = content.rpartition(FAILURE_HEAD)[2]
    return (last.partition("\n")[2] if FAILURE_HEAD in content else last).strip()


def _check_disk(error: str) -> None:
    """A full disk is no trial's fault: none is failed for it, and the sweep stops until there is room.

    Raises:
        OSError: it is full.
    """
    if found := DISK_FULL.search(error):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), found[1] or "the disk of a trial")

"""Writes a sweep to Weights & Biases, in addition to MLflow: one run per trial, all in the sweep's group.

It follows the sweep's record, as the MLflow writer does. The id of a run follows from the sweep and the trial, so that
delivering twice adds nothing on a server; offline (WANDB_MODE=offline) it leaves one more directory of the same run.
W&B finds its key by itself (WANDB_API_KEY, `wandb login`); no spec holds it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tokconv.errors import import_extra, printable
from tokconv.sweep.record.events import Event
from tokconv.sweep.record.layout import relative_place
from tokconv.sweep.record.log import read_events
from tokconv.sweep.tracking.follower import Delivery, Follower, RefusedError, one_line
from tokconv.sweep.tracking.mlflow_view import rounded, run_name, run_params, slug
from tokconv.sweep.tracking.replay import Replay

CURSOR = "wandb.cursor"
DELETED = "previously created and deleted"
"""Part of W&B's answer for the id of a run that somebody deleted: it never takes this id again."""
MOST_IDS = 10
REFUSED = re.compile(r"\b(401|403|404)\b|permission denied|not found", re.IGNORECASE)


class WandbWriter:
    """Follows a sweep's record into W&B, in a thread, from construction until `close`.

    Args:
        events: the record's file.
        project: the project of the runs.
        sweep: the sweep's unique name, the group of the runs.
        root: W&B's own files go to `wandb/` below it.
        on_message: called when W&B first fails, from the writer's thread.
    """

    def __init__(
        self, events: Path, *, project: str, sweep: str, root: Path, on_message: Callable[[str], None] = print
    ) -> None:
        self._events, self._project, self._sweep, self._root = events, slug(project), sweep, root
        self._open: dict[str, Any] = {}
        # The last step: the follower's thread calls `open` and `deliver` at once.
        cursor = events.parent / CURSOR
        self._follower = Follower(events, self, cursor=cursor, name="Weights & Biases", on_message=on_message)

    def close(self, timeout: float) -> Delivery:
        """Deliver the rest, for at most `timeout` seconds. What then remains is delivered by `--resume`."""
        delivery = self._follower.close(timeout)
        if delivery.complete:
            self._leave()
        return delivery

    def open(self) -> str:
        self._wandb = import_extra("wandb", "wandb")
        self._open.clear()
        self._again: dict[str, int] = {}
        self._replay = Replay(self._events)
        return f"{self._project}/{self._sweep}/{self._replay.born}"

    def deliver(self, events: Sequence[Event]) -> None:
        errors = self._wandb.errors
        try:
            self._deliver(events)
        except (errors.AuthenticationError, errors.UsageError) as error:
            raise RefusedError(
                f"{one_line(error)}; run: wandb login, or set WANDB_API_KEY, or WANDB_MODE=offline"
            ) from error
        except errors.CommError as error:
            if REFUSED.search(str(error)) is None:
                raise
            raise RefusedError(
                f"it refuses the project {self._project!r}: {one_line(error)}; correct tracking.experiment, or "
                "WANDB_ENTITY, or the rights of the key"
            ) from error

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._replay.apply(event)
            if event["event"] == "sweep_ended":
                self._leave()
            elif "trial" in event:
                self._deliver_trial(event)

    def _leave(self) -> None:
        """Finish the open runs; the run of an unfinished trial is opened again once the sweep goes on."""
        for uid in list(self._open):
            self._finish(uid)

    def _deliver_trial(self, event: Event) -> None:
        uid, run = event["trial"], self._run(event["trial"])
        if event["event"] == "trial_reported":
            figures = {name: rounded(value) for name, value in event["figures"].items()}
            run.log(figures, step=event["epoch"])
        elif event["event"] == "trial_ended":
            run.summary.update({"state": event["state"], "reason": event.get("reason", "")})
            # The compressor of a complete trial follows; opening its run again would take a second.
            if event["state"] != "complete":
                self._finish(uid)
        elif event["event"] == "trial_artifacts":
            folder = self._events.parent / relative_place(event["path"]) / "compressor"
            if folder.is_dir():
                artifact = self._wandb.Artifact(f"{self._sweep}-{uid}", type="model")
                artifact.add_dir(str(folder))
                run.log_artifact(artifact)
            self._finish(uid)

    def _run(self, uid: str) -> Any:
        """Return the open run of a trial. If somebody deleted it, a new one is opened and given what that one held."""
        if uid not in self._open:
            known = self._again.get(uid, 0)
            self._open[uid] = self._init(uid)
            if self._again.get(uid, 0) > known and not self._open[uid].resumed:
                for event, _ in read_events(self._events):
                    if event["event"] == "trial_reported" and event["trial"] == uid:
                        self._deliver_trial(event)
        return self._open[uid]

    def _init(self, uid: str) -> Any:
        trial = self._replay.find(uid)
        for again in range(self._again.get(uid, 0), MOST_IDS):
            self._again[uid] = again
            identity = f"{self._sweep} {self._replay.born} {uid}" + (f" again {again}" if again else "")
            try:
                return self._wandb.init(
                    project=self._project,
                    group=self._sweep,
                    job_type="trial" if trial.confirms is None else "confirm",
                    id=hashlib.sha256(identity.encode()).hexdigest()[:16],
                    name=run_name(trial),
                    config={key: printable(v) if isinstance(v, str) else v for key, v in run_params(trial).items()},
                    resume="allow",
                    reinit="create_new",
                    dir=str(self._root),
                    settings=self._wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True),
                )
            except self._wandb.errors.CommError as error:
                if DELETED not in str(error):
                    raise
        raise RefusedError(f"the run of trial {uid} was deleted {MOST_IDS} times; delete nothing, and use --resume")

    def _finish(self, uid: str) -> None:
        run = self._open.pop(uid)
        state = run.summary.get("state") or "interrupted"
        run.summary["state"] = state
        run.finish(exit_code=1 if state == "failed" else 0)

"""Writes a sweep to MLflow: a parent run per sweep, a child run per trial, a registered model per champion.

One writer, in the driver, follows the sweep's own record. A tracking server that is away therefore neither holds up the
sweep nor loses anything, and delivering the record twice adds nothing: a run is identified by its tags, a metric point
by (key, time, step, value), a model version by run and epoch.

    tags of a run   tokconv.kind (sweep | trial | confirm | baseline), tokconv.sweep, tokconv.protocol, tokconv.state,
                    tokconv.reason; tokconv.champion on the runs of winners, tokconv.evidence.PURPOSE on the run of an
                    exported champion, tokconv.evidence.GRID.PURPOSE on the run of the sweep
    identified by   tokconv.sweep_uid, tokconv.trial_uid or tokconv.baseline_uid, with tokconv.sweep_started
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from importlib.metadata import version
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from tokconv.sweep.record.events import Event
from tokconv.sweep.record.layout import relative_place
from tokconv.sweep.record.log import read_events
from tokconv.sweep.tracking.follower import Delivery, Follower
from tokconv.sweep.tracking.mlflow_connection import is_local
from tokconv.sweep.tracking.mlflow_models import mark_winners, register_all
from tokconv.sweep.tracking.mlflow_refusals import told_apart
from tokconv.sweep.tracking.mlflow_runs import NOTE, PARENT, MlflowRuns
from tokconv.sweep.tracking.mlflow_view import (
    baseline_note,
    baseline_run_name,
    run_name,
    run_note,
    run_params,
    slug,
    view_tags,
    view_url,
)
from tokconv.sweep.tracking.replay import Replay
from tokconv.system.uris import without_credentials

if TYPE_CHECKING:
    from mlflow.entities import Run

INCOMPLETE = "tokconv.incomplete"
"""Tag of a run that was created again, because somebody had deleted it, until it holds what the first one did."""


class MlflowWriter:
    """Follows a sweep's record into MLflow, in a thread, from construction until `close`.

    Args:
        events: the record's file.
        uri: the tracking server or database; it need not answer.
        experiment: the experiment's name.
        artifact_root: the artifacts of a local database go to `mlartifacts` below it; a server has its own storage.
        sweep: the sweep's unique name.
        cursor: the file that holds how far delivery came.
        on_message: called from the writer's thread when MLflow first fails, or when a moved database was repaired.

    Example:
        >>> writer = MlflowWriter(events, uri=local_uri(root), experiment="demo", artifact_root=root,
        ...                       sweep="demo-001", cursor=cursor)    # doctest: +SKIP
        >>> print(writer.close(60))                                   # doctest: +SKIP
        MLflow: all 231 events delivered
    """

    def __init__(
        self,
        events: Path,
        *,
        uri: str,
        experiment: str,
        artifact_root: Path,
        sweep: str,
        cursor: Path,
        on_message: Callable[[str], None] = print,
    ) -> None:
        self._events, self._uri, self._experiment = events, uri, experiment
        self._artifact_root, self._sweep, self._on_message = artifact_root, sweep, on_message
        self._experiment_id = ""
        # The last step: the follower's thread calls `open` and `deliver` at once.
        self._follower = Follower(events, self, cursor=cursor, name="MLflow", on_message=on_message)

    def close(self, timeout: float) -> Delivery:
        """Deliver the rest, for at most `timeout` seconds. What then remains is delivered by `--resume`."""
        delivery = self._follower.close(timeout)
        if not delivery.complete or not self._experiment_id or is_local(self._uri):
            return delivery
        url = view_url(without_credentials(self._uri), self._experiment_id, version("mlflow"))
        return replace(delivery, message=f"{delivery.message}; compare the trials: {url}")

    def open(self) -> str:
        """Connect, find or create experiment and parent run, and return the parent run's id."""
        with told_apart(self._uri, self._experiment):
            return self._open()

    def _open(self) -> str:
        self._replay = Replay(self._events)
        self._trial_runs: dict[str, str] = {}
        self._begun: set[str] = set()
        self._runs = MlflowRuns(self._uri, self._experiment, self._artifact_root, self._on_message)
        self._client, self._experiment_id = self._runs.client, self._runs.experiment_id
        tags = {"tokconv.kind": "sweep", "tokconv.sweep": self._sweep}
        parent = self._find_run("tokconv.sweep_uid", self._sweep, self._sweep, self._replay.born, tags)
        self._parent = str(parent.info.run_id)
        return self._parent

    def deliver(self, events: Sequence[Event]) -> None:
        """Write events; adjacent events of one trial go in one call."""
        with told_apart(self._uri, self._experiment):
            self._deliver(events)

    def _deliver(self, events: Sequence[Event]) -> None:
        for event in events:
            self._replay.apply(event)
            # A trial that is resumed has several starts; only after the first one is nothing missing in a new run.
            if event["event"] == "trial_started" and event["time"] == self._replay.find(event["trial"]).started:
                self._begun.add(event["trial"])
        for of_trials, group in groupby(events, key=lambda event: "trial" in event):
            if of_trials:
                by_trial: dict[str, list[Event]] = {}
                for event in group:
                    by_trial.setdefault(event["trial"], []).append(event)
                for uid, own in by_trial.items():
                    self._deliver_trial(uid, own)
            else:
                for event in group:
                    self._deliver_sweep(event)

    def _deliver_sweep(self, event: Event) -> None:
        if event["event"] == "sweep_started":
            tags = {f"tokconv.plan.{name}": value for name, value in event["plan"].items()}
            tags["tokconv.protocol"] = self._replay.protocol
            tags["tokconv.store_fingerprint"] = event["store_fingerprint"]
            tags["mlflow.source.git.commit"] = event["git_commit"]
            self._runs.set_state(self._parent, "running", "", tags)
            self._client.log_text(self._parent, yaml.safe_dump(event["spec"], sort_keys=False), "spec.yaml")
            grids = sorted(int(grid) for grid in event.get("baselines", {}))
            for name, value in view_tags(version("mlflow"), event["spec"]["search"], grids).items():
                self._client.set_experiment_tag(self._experiment_id, name, value)
            self._deliver_baselines(event)
        elif event["event"] == "sweep_ended":
            if event.get("artifacts"):
                self._runs.upload(self._parent, self._place(event["artifacts"]), "report")
            mark_winners(self._client, self._experiment_id, event, self._parent, self._trial_run)
            if event["state"] == "finished":
                folder, experiment = self._events.parent, slug(self._experiment)
                register_all(self._client, experiment, event, folder, self._parent, self._trial_run)
            else:
                self._stop_running_trials(event)
            self._runs.set_state(self._parent, event["state"], "", {NOTE: event.get("summary")}, event["time"])

    def _deliver_baselines(self, event: Event) -> None:
        """Write every baseline of every grid as a run, so that MLflow's tables and charts compare trials with them."""
        for grid, named in event.get("baselines", {}).items():
            ratio = (event["token_grid"] / int(grid)) ** 2
            for name, figures in named.items():
                tags = {
                    "tokconv.kind": "baseline",
                    "tokconv.sweep": self._sweep,
                    PARENT: self._parent,
                    "tokconv.protocol": str(self._replay.protocol),
                    "tokconv.state": "closed form",
                    NOTE: baseline_note(name, int(grid)),
                }
                uid, born = f"{self._sweep}/{grid}/{name}", self._replay.born
                run = self._find_run("tokconv.baseline_uid", uid, baseline_run_name(name, int(grid), ratio), born, tags)
                self._runs.log_metrics(run.info.run_id, [({**figures, "compression_ratio": ratio}, born, 0)])
                params = {"compression_ratio": ratio, "output_grid_size": int(grid), "num_tokens": int(grid) ** 2}
                self._runs.log_params(run.info.run_id, params)
                self._client.set_terminated(run.info.run_id, "FINISHED", born)

    def _stop_running_trials(self, event: Event) -> None:
        """Mark running trials as interrupted, since their sweep was; each runs again once the sweep is resumed."""
        wanted = f"tags.`{PARENT}` = '{self._parent}' and attributes.status = 'RUNNING'"
        for run in self._client.search_runs([self._experiment_id], wanted):
            self._runs.set_state(run.info.run_id, "interrupted", "", end_time=event["time"])

    def _deliver_trial(self, uid: str, events: Sequence[Event]) -> None:
        run_id = self._trial_run(uid)
        # Answers were given after the training: they belong to no epoch.
        told = (event for event in events if event["event"] in ("trial_reported", "trial_answered"))
        self._runs.log_metrics(run_id, ((event["figures"], event["time"], event.get("epoch", 0)) for event in told))
        for event in events:
            if event["event"] == "trial_artifacts":
                self._runs.upload(run_id, self._place(event["path"]))
        if any(event["event"] in ("trial_started", "trial_ended") for event in events):
            trial = self._replay.find(uid)
            note = run_note(trial, self._replay.token_grid)
            self._runs.set_state(run_id, trial.state, trial.reason, {NOTE: note}, trial.ended)

    def _trial_run(self, uid: str) -> str:
        """Return the id of a trial's run, found or created with its params."""
        if uid in self._trial_runs:
            return self._trial_runs[uid]
        trial = self._replay.find(uid)
        tags = {
            # Confirmations are of another kind than trials, so that the prepared view lists the search alone.
            "tokconv.kind": "trial" if trial.confirms is None else "confirm",
            "tokconv.sweep": self._sweep,
            PARENT: self._parent,
            "tokconv.protocol": str(self._replay.protocol),
            **({} if uid in self._begun else {INCOMPLETE: "true"}),
        }
        run = self._find_run("tokconv.trial_uid", f"{self._sweep}/{uid}", run_name(trial), trial.started, tags)
        run_id = str(run.info.run_id)
        if run.data.tags.get(PARENT) != self._parent:
            # The parent was deleted, and this is the new one's child.
            self._client.set_tag(run_id, PARENT, self._parent)
        # Also a metric: a param groups runs, a metric can be an axis. It is known before the first epoch.
        self._runs.log_metrics(run_id, [({"compression_ratio": trial.ratio}, trial.started, 0)])
        self._runs.log_params(run_id, run_params(trial))
        self._trial_runs[uid] = run_id
        if INCOMPLETE in run.data.tags:
            self._deliver_trial(uid, [event for event, _ in read_events(self._events) if event.get("trial") == uid])
            self._client.delete_tag(run_id, INCOMPLETE)
        return run_id

    def _find_run(self, tag: str, uid: str, name: str, start: int, tags: Mapping[str, str]) -> Run:
        """Return the run of a uid, found or created.

        Two machines may both have a sweep `demo-001` on one server: the time of its start distinguishes them.
        """
        identity = {tag: uid, "tokconv.sweep_started": str(self._replay.born)}
        return self._runs.find(identity, name, start, tags)

    def _place(self, path: str) -> Path:
        """Return a directory that the record names."""
        return self._events.parent / relative_place(path)

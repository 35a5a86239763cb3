"""Runs a `TorchTrainer` inside a Tune function and hands its reports to Tune.

Ray's own `ray.tune.integration.ray_train.TuneReportCallback` is not used, because a trial can wait in it for ever. Its
queue may be on a node that is taken away. Its last report and the end of the Tune function go through a queue with one
place, which a single thread fills and empties: if Tune is busy while both arrive, that thread waits for itself (Ray
2.60, `_TrainSession._get_result_from_queues`).
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import cache
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import Checkpoint, UserCallback
from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.util.queue import Empty, Queue

from tokconv.errors import SweepError
from tokconv.sweep.trials.watchdog import timeout_reason


class StoreTrainer(TorchTrainer):
    """A `TorchTrainer` that reads a token store and no Ray Data sets, so that no process has to start to serve those.

    Every actor costs one or two CPU seconds. Workers cannot call `ray.train.get_dataset_shard`.
    """

    def _create_default_callbacks(self) -> list[Any]:
        callbacks: list[Any] = super()._create_default_callbacks()  # type: ignore[misc]  # mypy reads Train v1's
        return [callback for callback in callbacks if not isinstance(callback, DatasetsCallback)]


def run_trainer(trainer_with: Callable[[UserCallback], TorchTrainer], trial_timeout: float = 0.0) -> None:
    """Run a trainer to its end and pass its workers' reports on to Tune.

    Args:
        trainer_with: makes the trainer; the callback must be among those of its `RunConfig`.
        trial_timeout: seconds that a report may take; 0 for no limit.

    Raises:
        SweepError: a report took longer.
        ray.train.TrainingFailedError: the trainer failed; everything that it had reported has been passed on.
    """
    queue, run_id = _living_queue(), uuid.uuid4().hex
    trainer, controller = trainer_with(_IntoQueue(queue, run_id)), None
    ended: Future[None] = Future()

    def run() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)
        finally:
            with suppress(RayActorError):  # nobody listens any longer
                queue.put((run_id, None))

    # A daemon thread: this process may have to end while it waits.
    threading.Thread(target=run, name="trainer", daemon=True).start()
    try:
        while True:
            try:
                sender, report = queue.get(timeout=trial_timeout or None)
            except Empty as error:
                raise SweepError(timeout_reason(trial_timeout)) from error
            if sender != run_id:
                continue  # a trial before this one was ended while it reported
            if report is None:
                break
            metrics, controller = report
            # Raises SystemExit if Tune stops the trial.
            ray.tune.report(metrics)
        ended.result()
    finally:
        # The next trial runs in this process: nothing of this one may be left.
        if controller is not None:
            ray.kill(controller)


def _living_queue() -> Queue:
    """Return the queue of this process, which its trials share one after another: each actor costs 1.6 CPU seconds."""
    try:
        _queue().empty()
    except RayActorError:
        _queue.cache_clear()
    return _queue()


@cache
def _queue() -> Queue:
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # One place, so that a trial does not run ahead of the scheduler that may stop it.
    return Queue(1, actor_options={"num_cpus": 0, "label_selector": here})


class _IntoQueue(UserCallback):
    """A callback that runs in the trainer's controller."""

    def __init__(self, queue: Queue, run_id: str) -> None:
        self._queue, self._run_id = queue, run_id

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Put rank 0's report, which stands for all workers, into the queue; Tune needs only the checkpoint's place."""
        place = {} if checkpoint is None else {CHECKPOINT_PATH_KEY: checkpoint.path}
        report = ({**metrics[0], **place}, ray.get_runtime_context().current_actor)
        self._queue.put((self._run_id, report))

"""What a `TorchTrainer` reports, handed to Tune by the Tune function that drives it.

Ray's own way, `ray.tune.integration.ray_train.TuneReportCallback`, is not taken: a trial can wait in it for ever. Its
queue may be on a node that is taken away. And its last report and the end of the Tune function go through a queue of
one place, which one thread fills and empties: when Tune is busy while both arrive, that thread waits for itself (Ray
2.60, `_TrainSession._get_result_from_queues`).
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

import ray
from ray.exceptions import RayActorError
from ray.train import Checkpoint, UserCallback
from ray.train.torch import TorchTrainer
from ray.tune.integration.ray_train import CHECKPOINT_PATH_KEY
from ray.util.queue import Empty, Queue

from tokconv.errors import SweepError
from tokconv.sweep.trials.watchdog import hung


def fit(trainer_with: Callable[[UserCallback], TorchTrainer], timeout: float | None = None) -> None:
    """Run a trainer to its end and report to Tune what its workers report.

    Args:
        trainer_with: makes the trainer; the callback must be among those of its `RunConfig`.
        timeout: seconds that a report may keep waiting; None waits.

    Raises:
        SweepError: it kept waiting longer.
        ray.train.TrainingFailedError: the trainer failed; all that it had reported before has been reported.
    """
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    # One place: a trial does not run ahead of the scheduler that may stop it.
    queue = Queue(1, actor_options={"num_cpus": 0, "label_selector": here})
    trainer, controller = trainer_with(_IntoQueue(queue)), None
    ended: Future[None] = Future()

    def run() -> None:
        try:
            trainer.fit()
            ended.set_result(None)
        except BaseException as error:
            ended.set_exception(error)
        finally:
            with suppress(RayActorError):  # nobody listens any more
                queue.put(None)

    # A daemon: this process may have to end while it waits.
    threading.Thread(target=run, name="trainer", daemon=True).start()
    try:
        while True:
            try:
                told = queue.get(timeout=timeout)
            except Empty as error:
                assert timeout is not None
                raise SweepError(hung(timeout)) from error
            if told is None:
                break
            metrics, controller = told
            # Raises SystemExit when Tune stops the trial.
            ray.tune.report(metrics)
        ended.result()
    finally:
        # The next trial runs in this process: nothing of this one may be left.
        if controller is not None:
            ray.kill(controller)
        queue.shutdown(force=True)


class _IntoQueue(UserCallback):
    """Runs in the trainer's controller."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue

    def after_report(self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: Checkpoint | None) -> None:
        """Rank 0 speaks for all workers; Tune needs the checkpoint's place, not the checkpoint."""
        kept = {} if checkpoint is None else {CHECKPOINT_PATH_KEY: checkpoint.path}
        self._queue.put(({**metrics[0], **kept}, ray.get_runtime_context().current_actor))

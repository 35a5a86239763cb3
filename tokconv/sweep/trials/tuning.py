"""The search and its confirmations as Ray Tune runs on one cluster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import ray.tune
from ray.exceptions import OutOfMemoryError
from ray.tune.schedulers import TrialScheduler
from ray.tune.search import Searcher

from tokconv.config.tree import Config
from tokconv.errors import SweepError, first_line
from tokconv.evaluation.epochs import EpochRule
from tokconv.exports.answers.last_epoch import located
from tokconv.store.remote import StorePlace
from tokconv.sweep.record.events import FINISHED
from tokconv.sweep.record.layout import SweepDirectory
from tokconv.sweep.record.log import Record
from tokconv.sweep.search.early_stopping import ParetoHalving, Rungs
from tokconv.sweep.search.study import GivenSearcher, StudySearcher, open_study
from tokconv.sweep.spec.rules import compared
from tokconv.sweep.spec.schema import Spec
from tokconv.sweep.trials.listener import MAX_LOSSES, SAME_FAILURES, Listener
from tokconv.sweep.trials.trial import TrialJob, check_resources, trial_function, tune_resources
from tokconv.sweep.trials.vlm import judge_settings
from tokconv.system.ray_cluster import ray_cluster


def tune(
    spec: Spec,
    config: Config,
    store: StorePlace,
    directory: SweepDirectory,
    record: Record,
    listener: Listener,
    missing_confirmations: Callable[[], list[dict[str, Any]]],
    best: Mapping[int, tuple[EpochRule, ...]],
) -> None:
    """Run the missing trials, then the missing confirmations of the finished search.

    Unfinished trials come first, then new ones until the record holds `spec.trials`.

    Args:
        missing_confirmations: called once, after the search; returns configs with `confirms`.
        best: output grid -> the rules by which a trial keeps its best epochs.

    Raises:
        ClusterError: no Ray cluster.
        SweepError: the cluster lacks what one trial needs, the first trials all fail in one way, or all of them, or
            memory ran out.
    """
    missing = spec.trials - sum(trial.state in FINISHED for trial in record.trials.values())
    if missing <= 0:
        check_any_ended(record)
    configs = missing_confirmations() if missing <= 0 else []
    if missing <= 0 and not configs:
        return
    # Without this, Tune answers Ctrl-C by going on until all running trials have ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with ray_cluster(dashboard=spec.resources.runner == "torch_trainer") as private:
        check_resources(spec.resources, private=private)
        job = TrialJob(located(config), store, directory.trials, spec.resources, best, judge_settings(spec))
        if missing > 0:
            scheduler = None
            if spec.early_stopping is not None:
                rungs = Rungs(spec.early_stopping, config.training.epochs, compared(spec.judged_by))
                rungs.replay(record.trials.values())
                scheduler = ParetoHalving(rungs)
            study = open_study(spec, directory.journal, record)
            searcher = StudySearcher(
                spec,
                study,
                record.trials.values(),
                lambda: listener.common_failure is not None,
                listener.on_refused,
            )
            _run_tuner("tune", spec, job, directory, listener, searcher, scheduler, missing)
            if listener.common_failure is not None:
                raise SweepError(
                    f"the first {SAME_FAILURES} trials all failed in the same way: {listener.common_failure}; correct "
                    "what they share, then start a new sweep, or go on with --resume if the trials are right"
                )
            check_any_ended(record)
            configs = missing_confirmations()
        if configs:
            _run_tuner("confirm", spec, job, directory, listener, GivenSearcher(configs), None, len(configs))


def check_any_ended(record: Record) -> None:
    """Raise SweepError if every trial of a search has failed: nothing is there to judge."""
    trials = list(record.trials.values())
    if trials and all(trial.state == "failed" for trial in trials):
        raise SweepError(
            f"all of the {len(trials)} trials failed, the last with: {trials[-1].reason}; correct the spec and start a "
            "new sweep, or go on with --resume and more trials"
        )


def _run_tuner(
    name: str,
    spec: Spec,
    job: TrialJob,
    directory: SweepDirectory,
    listener: Listener,
    searcher: Searcher,
    scheduler: TrialScheduler | None,
    samples: int,
) -> None:
    """Run Tune once; everything that it leaves behind is in the record."""
    tuner = ray.tune.Tuner(
        ray.tune.with_resources(ray.tune.with_parameters(trial_function, job=job), tune_resources(spec.resources)),
        tune_config=ray.tune.TuneConfig(
            search_alg=searcher,
            scheduler=scheduler,
            num_samples=samples,
            max_concurrent_trials=spec.concurrency,
            reuse_actors=True,
            trial_name_creator=lambda trial: str(trial.config["uid"]),
            trial_dirname_creator=lambda trial: str(trial.config["uid"]),
        ),
        run_config=ray.tune.RunConfig(
            name=name,
            storage_path=str(directory.path),
            callbacks=[listener],
            failure_config=ray.tune.FailureConfig(max_failures=MAX_LOSSES),
            verbose=0,
        ),
    )
    with lack_of_memory_explained():
        tuner.fit()


@contextmanager
def lack_of_memory_explained() -> Iterator[None]:
    """Raise SweepError in place of Tune's error for a process of a trial that Ray ended while it started.

    Ray ends processes before memory runs out. Tune counts that as a lost process only once it runs.
    """
    try:
        yield
    except RuntimeError as error:
        if not isinstance(error.__cause__, OutOfMemoryError):
            raise
        raise SweepError(
            f"Ray ended trials because memory ran out ({first_line(error.__cause__)[:200]}); lower concurrency, or end "
            "other programs, and go on with --resume"
        ) from error

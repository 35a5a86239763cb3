"""The search itself: study, early stopping and trials put into one Ray Tune run."""

from __future__ import annotations

import os
from pathlib import Path

from tokconv.config import Config, to_dict
from tokconv.sweep.cluster import ray_cluster
from tokconv.sweep.layout import SweepDirectory
from tokconv.sweep.listener import Listener
from tokconv.sweep.record import FINISHED, Record
from tokconv.sweep.spec import Spec


def tune(
    spec: Spec, config: Config, store: Path, directory: SweepDirectory, record: Record, listener: Listener
) -> None:
    """Run the trials that are missing: unfinished ones first, then new ones until the record holds `spec.trials`.

    Raises:
        SweepError: no Ray cluster, or the cluster lacks what one trial needs.
    """
    finished = sum(trial.state in FINISHED for trial in record.trials.values())
    missing = spec.trials - finished
    if missing <= 0:
        return
    # Tune would answer Ctrl-C by going on until all running trials have ended.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    with ray_cluster(dashboard=spec.resources.runner == "torch_trainer") as private:
        import ray.tune

        from tokconv.sweep.scheduler import ParetoHalving, Rungs
        from tokconv.sweep.search import StudySearcher, open_study
        from tokconv.sweep.trial import TrialJob, check_resources, trial_function, tune_resources

        if private:
            check_resources(spec.resources)
        scheduler = None
        if spec.early_stopping is not None:
            rungs = Rungs(spec.early_stopping, config.training.epochs)
            rungs.replay(record.trials.values())
            scheduler = ParetoHalving(rungs)
        job = TrialJob(to_dict(config), str(store), str(directory.trials), spec.resources)
        tuner = ray.tune.Tuner(
            ray.tune.with_resources(ray.tune.with_parameters(trial_function, job=job), tune_resources(spec.resources)),
            tune_config=ray.tune.TuneConfig(
                search_alg=StudySearcher(spec, open_study(spec, directory.journal), record.trials.values()),
                scheduler=scheduler,
                num_samples=missing,
                max_concurrent_trials=spec.concurrency,
                reuse_actors=spec.resources.runner == "inline",
                trial_name_creator=lambda trial: str(trial.config["uid"]),
                trial_dirname_creator=lambda trial: str(trial.config["uid"]),
            ),
            run_config=ray.tune.RunConfig(
                name="tune",
                storage_path=str(directory.path),
                callbacks=[listener],
                failure_config=ray.tune.FailureConfig(max_failures=1),
                verbose=0,
            ),
        )
        tuner.fit()
